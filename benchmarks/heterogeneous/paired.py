"""Paired statistics: one set of resamples for everything, so that all is compared on the same queries and seeds.

Each resample draws queries *and* seeds with replacement (a crossed bootstrap), the same ones for all cells. So an interval
answers for other queries and for another training of the same recipe; with three seeds the latter is a coarse answer. The one
cloud model has one training: figures are about this gallery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from samespace.sdk.metrics import Estimate

__all__ = ["Figure", "Inversion", "Resamples", "holm", "inversions", "mean_of"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Figure:
    """A number with what it would have been in each resample; arithmetic keeps the pairing.

    Attributes:
        value: over all queries and seeds.
        draws: ``(resamples,)``.
        n: queries behind it.
    """

    value: float
    draws: Array
    n: int

    def __sub__(self, other: Figure) -> Figure:
        return Figure(self.value - other.value, self.draws - other.draws, min(self.n, other.n))

    def __truediv__(self, other: Figure) -> Figure:
        return Figure(self.value / other.value, self.draws / other.draws, min(self.n, other.n))

    @property
    def estimate(self) -> Estimate:
        """With the 95 % percentile interval."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return Estimate(self.value, float(low), float(high), self.n)

    @property
    def p_value(self) -> float:
        """Two-sided, that it is 0: twice the share of resamples on the other side of 0 (counting one more), at most 1."""
        below, above = (self.draws <= 0).sum(), (self.draws >= 0).sum()
        return float(min(1.0, 2 * (min(below, above) + 1) / (len(self.draws) + 1)))


class Resamples:
    """Fixed resamples of ``seeds`` x ``queries``.

    Args:
        seeds: repetitions.
        queries: of the split.
        count: resamples.
        seed: of the drawing.
    """

    def __init__(self, seeds: int, queries: int, count: int = 4000, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.seeds, self.queries = seeds, queries
        self.drawn_queries = generator.integers(0, queries, (count, queries), dtype=np.int32)
        self.drawn_seeds = generator.integers(0, seeds, (count, seeds))
        self._query_shares = _shares(self.drawn_queries, queries)
        self._seed_shares = _shares(self.drawn_seeds, seeds)

    def figure(self, hits: npt.ArrayLike) -> Figure:
        """The mean of ``(seeds, queries)``, or of ``(queries,)`` for what has one training.

        Raises:
            ValueError: an array of another shape.
        """
        array = np.asarray(hits, np.float64)
        if array.shape not in {(self.seeds, self.queries), (self.queries,)}:
            raise ValueError(f"expected hits of shape {(self.seeds, self.queries)} or {(self.queries,)}, got {array.shape}")
        if array.ndim == 1:
            return Figure(float(array.mean()), self._query_shares @ array, self.queries)
        return Figure(float(array.mean()), ((self._query_shares @ array.T) * self._seed_shares).sum(1), self.queries)


def mean_of(figures: Sequence[Figure]) -> Figure:
    """The mean of several, resample by resample."""
    draws = np.mean([figure.draws for figure in figures], axis=0)
    return Figure(float(np.mean([figure.value for figure in figures])), draws, min(figure.n for figure in figures))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): step down, monotone, at most 1."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Inversion:
    """Two candidates that M(q,q) and M(q,g) order otherwise.

    Attributes:
        first: better by M(q,q), on the validation classes.
        second: better by M(q,g), there.
        own: M(q,q) of the first minus that of the second, on the test classes.
        cross: M(q,g) of the second minus that of the first, on the test classes.
        p: that not both are above 0: the larger of the two p-values, adjusted for the number of chosen pairs.
        confirmed: both intervals are above 0 and p < 0.05.
    """

    first: str
    second: str
    own: Estimate
    cross: Estimate
    p: float
    confirmed: bool


def inversions(
    validation: Mapping[str, tuple[Figure, Figure]], test: Mapping[str, tuple[Figure, Figure]], least: float = 1.0
) -> list[Inversion]:
    """Pairs chosen on validation classes by their opposite orders, and put to the test on test classes.

    Args:
        validation: candidate -> M(q,q) and M(q,g).
        test: the same on the test classes.
        least: how many standard errors both validation differences must be off 0 for a pair to be chosen: a few good
            hypotheses survive the correction for their number, all pairs would not.
    """
    chosen = []
    for a, b in combinations(validation, 2):
        own, cross = (validation[a][side] - validation[b][side] for side in (0, 1))
        if own.value * cross.value < 0 and all(abs(gap.value) > least * gap.draws.std() for gap in (own, cross)):
            chosen.append((a, b) if own.value > 0 else (b, a))
    gaps = [(test[a][0] - test[b][0], test[b][1] - test[a][1]) for a, b in chosen]
    # Both must differ: the weaker of the two decides (intersection-union); a difference of the wrong sign is none.
    raw = [max(gap.p_value if gap.value > 0 else 1.0 for gap in both) for both in gaps]
    found = []
    for (a, b), (own, cross), p in zip(chosen, gaps, holm(raw), strict=True):
        confirmed = own.estimate.low > 0 and cross.estimate.low > 0 and p < 0.05
        found.append(Inversion(a, b, own.estimate, cross.estimate, p, confirmed))
    return sorted(found, key=lambda inversion: inversion.p)


def _shares(drawn: npt.NDArray[np.integer], items: int) -> Array:
    """``(resamples, items)``: how often each item was drawn, as a share."""
    counts = np.zeros((len(drawn), items))
    np.add.at(counts, (np.arange(len(drawn))[:, None], drawn), 1)
    return counts / drawn.shape[1]
