"""Numbers over a chain of models, and whether groups survive, against slow and obvious references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import adjusted_rand_score

from samespace.sdk.errors import DataError
from samespace.sdk.metrics import (
    adjusted_rand_index,
    average_accuracy,
    average_compatibility,
    compatibility_tax,
    update_gain,
)

#: A few values, so that ties come up.
matrices = st.integers(2, 5).flatmap(lambda t: arrays(np.float64, (t, t), elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0])))
groups = st.integers(1, 12).flatmap(lambda n: st.tuples(*(st.lists(st.integers(0, 3), min_size=n, max_size=n),) * 2))


@given(matrices)
def test_chain_metrics_are_what_their_definitions_say(matrix: np.ndarray) -> None:
    t = len(matrix)
    pairs = [(new, old) for new in range(t) for old in range(new)]
    wins = sum(matrix[new, old] > matrix[old, old] for new, old in pairs)
    assert average_compatibility(matrix) == pytest.approx(2 / (t * (t - 1)) * wins)
    lower = [matrix[new, old] for new in range(t) for old in range(new + 1)]
    assert average_accuracy(matrix) == pytest.approx(sum(lower) / len(lower))


def test_what_old_queries_find_in_new_galleries_is_not_asked_for() -> None:
    assert average_compatibility([[0.5, math.nan], [0.6, 0.7]]) == 1
    assert average_accuracy([[0.5, math.nan], [0.6, 0.7]]) == pytest.approx(0.6)


@pytest.mark.parametrize("matrix", [[[0.5]], [[0.5, 0.1]], [0.5, 0.1], [[0.5, 0.1], [math.nan, 0.1]]])
def test_half_a_matrix_is_refused(matrix: list) -> None:
    with pytest.raises(DataError, match="matrix"):
        average_compatibility(matrix)


def test_gain_and_tax() -> None:
    assert update_gain(0.4, 0.5, 0.6) == pytest.approx(0.5)
    assert update_gain(0.4, 0.3, 0.6) == pytest.approx(-0.5)
    assert update_gain(0.6, 0.7, 0.6) is None, "a new model that is not better alone gives nothing to gain"
    assert compatibility_tax(0.6, 0.55) == pytest.approx(0.05)


@given(groups)
def test_groups_agree_as_scikit_learn_says(both: tuple[list[int], list[int]]) -> None:
    a, b = both
    assert adjusted_rand_index(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)
    assert adjusted_rand_index(a, b) == pytest.approx(adjusted_rand_index(b, a))
    assert adjusted_rand_index(a, [f"group {name}" for name in a]) == 1


def test_groups_of_other_items_are_refused() -> None:
    with pytest.raises(DataError, match="got 2 and 3"):
        adjusted_rand_index([0, 1], [0, 1, 1])
