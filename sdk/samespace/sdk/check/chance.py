"""Small statistics of the gate: how many queries would decide, and what chance alone would give."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

__all__ = ["chance_tail", "queries_needed"]

#: More queries than anyone will collect: said as "more than".
_MAX_QUERIES = 1_000_000


def queries_needed(values: np.ndarray, limit: float, confidence: float) -> str:
    """About how many values would put the limit outside the interval, if mean and spread stay as they are.

    Normal approximation: ``z * sd / sqrt(n) = |mean - limit|``.
    """
    distance = abs(float(values.mean()) - limit)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    spread = float(values.std())
    if distance * math.sqrt(_MAX_QUERIES) <= z * spread:
        return f"more than {_MAX_QUERIES}"
    return f"about {max(len(values) + 1, math.ceil((z * spread / distance) ** 2))}"


def chance_tail(hits: int, n: int, chance: float) -> float:
    """P(at least ``hits`` of ``n`` by chance), binomial; summed from the far end, where the terms are small."""
    if hits == 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(chance) + (n - i) * math.log1p(-chance)
        for i in range(n, hits - 1, -1)
    )
    return min(1.0, math.fsum(math.exp(value) for value in logs))
