"""Scores of two pairs of models on one scale: equal odds, whatever each model's cosines are like."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.metrics import ScoreMap, fit_probability, fit_score_map


def sides(seed: int, n: int = 4000, gap: float = 0.5, spread: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return gap + spread * generator.standard_normal(n), spread * generator.standard_normal(3 * n)


@given(slope=st.floats(0.1, 10), offset=st.floats(-3, 3), seed=st.integers(0, 50))
def test_a_change_of_scale_is_undone(slope: float, offset: float, seed: int) -> None:
    genuine, impostor = sides(seed)
    found = fit_score_map(slope * genuine + offset, slope * impostor + offset, genuine, impostor)
    np.testing.assert_allclose(found(slope * 0.3 + offset), 0.3, atol=1e-6)
    np.testing.assert_allclose(found.back(found(0.2)), 0.2, atol=1e-9)


def test_the_sigmoid_is_the_best_of_a_grid() -> None:
    genuine, impostor = sides(1)
    a, b = fit_probability(genuine, impostor)

    def loss(slope: float, offset: float) -> float:
        """Cross entropy against Platt's targets, both sides weighed alike."""
        total = 0.0
        for scores, target in ((genuine, (len(genuine) + 1) / (len(genuine) + 2)), (impostor, 1 / (len(impostor) + 2))):
            p = 1 / (1 + np.exp(-(slope * scores + offset)))
            total -= 0.5 * float(np.mean(target * np.log(p) + (1 - target) * np.log(1 - p)))
        return total

    best = loss(a, b)
    for slope in np.linspace(0.5 * a, 1.5 * a, 21):
        for offset in np.linspace(b - 2, b + 2, 21):
            assert best <= loss(slope, offset) + 1e-12


def test_equal_scores_mean_equal_odds() -> None:
    """Of what lies at a merged score, as many belong together whichever pair of models it came from."""
    genuine, impostor = sides(2, n=200_000, gap=0.5, spread=0.15)
    weak_genuine, weak_impostor = 0.2 + 0.3 * sides(3, n=200_000, gap=0.5, spread=0.25)[0], 0.2 + 0.3 * sides(4, n=200_000)[1]
    found = fit_score_map(weak_genuine, weak_impostor, genuine, impostor)
    for score in (0.2, 0.25, 0.3):
        at = [
            np.mean(np.abs(side - score) < 0.02)
            for side in (
                genuine,
                impostor,
                found.slope * weak_genuine + found.offset,
                found.slope * weak_impostor + found.offset,
            )
        ]
        assert abs(np.log(at[0] / at[1]) - np.log(at[2] / at[3])) < 0.8


def test_scores_without_overlap_have_a_map() -> None:
    found = fit_score_map([0.9, 0.8], [0.1, 0.0], [0.5, 0.6], [-0.5, -0.4])
    assert found(0.85) > found(0.05)


def test_nothing_to_merge_by_is_said() -> None:
    genuine, impostor = sides(5)
    with pytest.raises(DataError, match="nothing to merge by"):
        fit_score_map(impostor, genuine, genuine, impostor)
    with pytest.raises(DataError):
        fit_probability([], [0.1])
    with pytest.raises(ConfigError, match="slope above 0"):
        ScoreMap(0.0)
