"""Agreement and verification metrics against slow references and hand-made geometry."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samespace.sdk.errors import ConfigError, DataError, EmbeddingError, SpaceMismatchError
from samespace.sdk.metrics import angle, cosine, max_angle, pair_scores, tar_at_far, threshold_at_far, worst_percentile

scores = st.lists(st.integers(-8, 8).map(lambda i: i / 8), min_size=1, max_size=60)


@given(st.lists(st.tuples(st.floats(0, 360), st.floats(0, 180)), min_size=1, max_size=20))
def test_embeddings_built_from_angles_give_these_angles(pairs):
    start, turn = np.radians(np.array(pairs)).T
    a = np.stack([np.cos(start), np.sin(start)], 1).astype(np.float32)
    b = np.stack([np.cos(start + turn), np.sin(start + turn)], 1).astype(np.float32)
    # float32 unit vectors are off by up to 1e-7 rad or so each.
    assert np.allclose(angle(a, b), np.degrees(turn), atol=2e-5)
    assert np.allclose(cosine(a, b), np.cos(turn), atol=4e-7)
    assert max_angle(a, b) == pytest.approx(np.degrees(turn.max()), abs=2e-5)


def test_small_angles_are_not_lost(random_units):
    a = random_units(4, 16)
    assert max_angle(a, a) == 0
    assert np.all(cosine(a, a) > 1 - 1e-15)


def test_cosine_ignores_the_rounding_of_norms(random_units):
    a = random_units(4, 16)
    assert np.all(cosine(a, a * np.float32(1.0005)) > 1 - 1e-12)


def test_cosine_refuses_what_is_not_comparable(random_units):
    with pytest.raises(SpaceMismatchError):
        cosine(random_units(2, 4), random_units(2, 5))
    with pytest.raises(DataError):
        cosine(random_units(2, 4), random_units(3, 4))
    with pytest.raises(EmbeddingError, match="row 1"):
        cosine(random_units(2, 4), random_units(2, 4) * np.array([[1], [np.nan]], np.float32))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=400), st.floats(0, 100))
def test_worst_percentile_is_an_observed_value_with_that_share_at_or_below(values, percent):
    worst = worst_percentile(values, percent)
    assert worst in values
    position = math.floor(percent / 100 * (len(values) - 1))
    assert worst in (
        sorted(values)[position],
        sorted(values)[max(0, position - 1)],
        sorted(values)[min(len(values) - 1, position + 1)],
    )
    assert min(values) <= worst <= max(values)


def test_worst_percentile_of_few_values_is_the_minimum():
    values = np.random.default_rng(0).random(100)
    assert worst_percentile(values, 1.0) == values.min()
    assert worst_percentile(np.arange(1001), 1.0) == 10


def test_worst_percentile_refuses_nonsense():
    with pytest.raises(DataError):
        worst_percentile([])
    with pytest.raises(DataError, match="item 1 is not a finite number"):
        worst_percentile([1, math.nan])
    with pytest.raises(ConfigError):
        worst_percentile([1.0], 101)


@given(scores, st.sampled_from([0.01, 0.05, 0.1, 0.29, 0.5, 0.9]))
def test_threshold_is_the_lowest_that_keeps_the_false_accept_rate(impostor, far):
    allowed = far * len(impostor) + 1e-9
    if allowed < 1:
        with pytest.raises(DataError, match="needs at least"):
            threshold_at_far(impostor, far)
        return
    threshold = threshold_at_far(impostor, far)
    assert sum(score >= threshold for score in impostor) <= allowed
    just_lower = np.nextafter(threshold, -np.inf)
    assert sum(score >= just_lower for score in impostor) > allowed


@given(scores, scores)
def test_true_accept_rate_counts_genuine_scores_above_the_threshold(genuine, impostor):
    far = 0.9 if len(impostor) > 1 else None
    if far is None:
        return
    threshold = threshold_at_far(impostor, far)
    assert tar_at_far(genuine, impostor, far) == sum(s >= threshold for s in genuine) / len(genuine)


def test_threshold_holds_for_float32_scores_with_ties():
    impostor = np.array([0.3, 0.1, 0.1, 0.1], np.float32)
    threshold = threshold_at_far(impostor, 0.25)
    assert (impostor >= threshold).tolist() == [True, False, False, False]
    assert tar_at_far(impostor, impostor, 0.25) == 0.25


@pytest.mark.parametrize("far", [0.0, 1.0, -0.1, math.nan])
def test_false_accept_rate_must_be_a_rate(far):
    with pytest.raises(ConfigError):
        threshold_at_far([0.1, 0.2], far)


def test_pair_scores_marks_the_genuine_pairs(random_units):
    query, gallery = random_units(2, 3), random_units(3, 3)
    pairs, genuine = pair_scores(query, gallery, ["a", "b"], ["b", "a", "a"])
    assert genuine.tolist() == [[False, True, True], [True, False, False]]
    assert np.allclose(pairs, [[float(q @ g) for g in gallery] for q in query], atol=1e-6)
