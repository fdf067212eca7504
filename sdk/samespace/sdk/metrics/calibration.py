"""Putting scores of one pair of models on the scale of another pair, so that hits of both can be merged into one ranking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.metrics.arrays import checked_values

__all__ = ["ScoreMap", "fit_probability", "fit_score_map"]

#: Newton's method on two parameters has converged long before.
_ROUNDS = 50


@dataclass(frozen=True)
class ScoreMap:
    """``slope * score + offset``; the slope is above 0, so that the order stays.

    Raises:
        ConfigError: a slope that is not above 0, or values that are not finite.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.slope) and np.isfinite(self.offset) and self.slope > 0):
            raise ConfigError(f"a score map needs a finite slope above 0 and a finite offset, got {self.slope}, {self.offset}")

    def __call__(self, score: float) -> float:
        return self.slope * score + self.offset

    def back(self, score: float) -> float:
        """The score that is put there."""
        return (score - self.offset) / self.slope


def fit_score_map(
    genuine: npt.ArrayLike, impostor: npt.ArrayLike, target_genuine: npt.ArrayLike, target_impostor: npt.ArrayLike
) -> ScoreMap:
    """The map after which equal scores mean equal odds that a pair belongs together.

    Both pairs of models get a sigmoid of the score (:func:`fit_probability`); the map leads from the first through the inverse
    of the second.

    Args:
        genuine, impostor: scores of pairs that belong together, and that do not, where the map begins.
        target_genuine, target_impostor: the same where it leads to.

    Raises:
        DataError: one of them is empty, or scores that tell nothing about which pairs belong together.
    """
    a, b = fit_probability(genuine, impostor)
    c, d = fit_probability(target_genuine, target_impostor)
    if a <= 0 or c <= 0:
        raise DataError("scores of pairs that belong together are not higher than others: there is nothing to merge by")
    return ScoreMap(a / c, (b - d) / c)


def fit_probability(genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> tuple[float, float]:
    """``(a, b)`` of ``P(genuine | s) = 1 / (1 + exp(-(a s + b)))`` with both sides weighed alike.

    Platt, "Probabilistic outputs for support vector machines", 1999, with his smoothed targets, so that scores without overlap
    have a solution, too; by Newton's method.

    Raises:
        DataError: no scores on a side.
    """
    yes, no = checked_values("genuine scores", genuine), checked_values("impostor scores", impostor)
    scores = np.concatenate([yes, no]).astype(np.float64)
    centre, spread = scores.mean(), scores.std() or 1.0
    x = (scores - centre) / spread
    target = np.concatenate([np.full(len(yes), (len(yes) + 1) / (len(yes) + 2)), np.full(len(no), 1 / (len(no) + 2))])
    weight = np.concatenate([np.full(len(yes), 0.5 / len(yes)), np.full(len(no), 0.5 / len(no))])
    a = b = 0.0
    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(a * x + b, -500, 500)))
        wrong, curve = weight * (p - target), weight * p * (1 - p)
        gradient = np.array([wrong @ x, wrong.sum()])
        curvature = np.array([[curve @ (x * x), curve @ x], [curve @ x, curve.sum()]]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        # A full step may jump over the optimum where the curve is flat.
        step *= min(1.0, 5.0 / float(np.abs(step).max() or 1.0))
        a, b = a - step[0], b - step[1]
        if np.abs(step).max() < 1e-9:
            break
    return float(a / spread), float(b - a * centre / spread)
