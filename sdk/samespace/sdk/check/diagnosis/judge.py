"""Which hypothesis explains the embeddings: squared distances probe by probe, and a bootstrap over the probes.

With e the device's embedding, r what is right and p what a mistake would give, the mistake explains ``|e - r|^2 - |e - p|^2``
of the difference. Under it that is about ``|p - r|^2``, under "nothing is wrong" about minus that, whatever noise (an int8
artifact's, say) lies on e, as long as the noise does not happen to point from r to p. So even a mistake smaller than the
noise is seen, over many probes and dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.diagnosis.hypotheses import Hypothesis

__all__ = ["Judged", "best", "judge_all"]

_Rows = npt.NDArray[np.float64]

#: A mistake is named when it explains this share of the difference, noise left out ...
_FIT = 0.75
#: ... and goes this far of the way from right to mistaken, and not further.
_SLOPE = (0.75, 1.4)
#: ... by so many standard errors of the bootstrap over the probes.
_DEVIATIONS = 4.0
#: Two mistakes are named for one only when they leave less than this share of what one leaves.
_PAIR_GAIN = 0.85
_SAMPLES, _SEED = 400, 0
#: Mean squared distance between fingerprints below which noise decides which is nearer; halving a picture, say, antialias and a
#: box filter come to the same.
_ALIKE = 5e-5
#: Share of the largest effect below which a mistake makes no difference to a probe.
_NOTHING = 1e-3


@dataclass(frozen=True, eq=False)
class Judged:
    """How well a hypothesis fits.

    Attributes:
        hypothesis: which.
        left: ``(m,)`` squared distance of each probe to what it says.
        fit: share of the difference from the reference that it explains, noise left out; 1 is all.
        slope: how far the embeddings went from right to mistaken; 1 is all the way.
        deviations: standard errors by which it beats "nothing is wrong".
    """

    hypothesis: Hypothesis
    left: _Rows = field(repr=False)
    fit: float
    slope: float
    deviations: float

    @property
    def accepted(self) -> bool:
        """Whether it may be named."""
        return self.clear_by(_DEVIATIONS)

    def clear_by(self, deviations: float) -> bool:
        """Whether it explains the difference by so many standard errors; one that was not chosen among many needs fewer."""
        return self.fit >= _FIT and _SLOPE[0] <= self.slope <= _SLOPE[1] and self.deviations >= deviations

    @property
    def mean(self) -> float:
        """Mean squared distance that is left."""
        return float(self.left.mean())


def judge_all(
    embeddings: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.float32],
    hypotheses: Sequence[Hypothesis],
    noise: float,
) -> list[Judged]:
    """Judge every hypothesis on the probes that it knows.

    Args:
        embeddings: ``(n, d)`` of the device, unit-norm where usable.
        usable: ``(n,)``, False for rows that are no embedding.
        reference: ``(n, d)`` unit-norm, what is right.
        hypotheses: to judge; one whose rows are all as the reference is left out.
        noise: mean squared distance that a healthy artifact of this precision has.
    """
    right = _squared(embeddings - reference)
    judged = []
    for hypothesis in hypotheses:
        rows = np.flatnonzero(usable[: len(hypothesis.rows)])
        effect = _squared(hypothesis.rows[rows] - reference[rows])
        if not len(rows) or not effect.sum() > 0:
            continue
        left = _squared(embeddings[rows] - hypothesis.rows[rows])
        gain = right[rows] - left
        before = right[rows].mean()
        # The noise is part of both distances; it is not to be explained.
        share = 1 - max(0.0, left.mean() - noise) / max(before - min(noise, before / 2), 1e-30)
        judged.append(
            Judged(
                hypothesis=hypothesis,
                left=left,
                fit=float(np.clip(share, 0, 1)),
                slope=float((gain.sum() / effect.sum() + 1) / 2),
                # A mistake may matter to few probes only, EXIF to turned photos; the others say nothing about it.
                deviations=_deviations(gain[effect > _NOTHING * effect.max()]),
            )
        )
    return judged


def best(judged: Sequence[Judged]) -> list[Judged]:
    """The accepted hypotheses, best first; a pair comes first only when it leaves clearly less than the best single mistake."""
    order = sorted((item for item in judged if item.accepted), key=_left_on_common)
    if not order:
        return []
    single = next((item for item in order if len(item.hypothesis.faults) == 1), None)
    first = order[0]
    if single is not None and len(first.hypothesis.faults) == 2:
        count = min(len(single.left), len(first.left))
        alone, together = single.left[:count], first.left[:count]
        apart = _squared(single.hypothesis.rows[:count] - first.hypothesis.rows[:count])
        if len(apart) == count == len(alone):
            alone, together = alone[apart > _NOTHING * apart.max()], together[apart > _NOTHING * apart.max()]
        worth = together.mean() < _PAIR_GAIN * alone.mean() and _deviations(alone - together) >= _DEVIATIONS
        first = first if worth else single
    if len(first.hypothesis.faults) == 1:
        # Of singles that cannot be told apart on these probes, the likelier one, which comes first in the list.
        first = next(item for item in judged if item.accepted and _same(item, first))
    return [first, *(item for item in order if item is not first)]


def _same(item: Judged, other: Judged) -> bool:
    if item is other:
        return True
    if len(item.hypothesis.faults) != 1:
        return False
    count = min(len(item.hypothesis.rows), len(other.hypothesis.rows))
    apart = _squared(item.hypothesis.rows[:count] - other.hypothesis.rows[:count]).mean()
    return bool(apart < _ALIKE and item.mean <= 1.2 * other.mean + 1e-7)


def _left_on_common(item: Judged) -> float:
    return item.mean


def _squared(rows: npt.NDArray[np.floating]) -> _Rows:
    wide = rows.astype(np.float64)
    return np.einsum("ij,ij->i", wide, wide)


def _deviations(values: _Rows) -> float:
    """Mean in standard errors of the bootstrap over the probes; of equal values a large number with their sign."""
    generator = np.random.default_rng(_SEED)
    picks = generator.integers(0, len(values), (_SAMPLES, len(values)))
    spread = float(values[picks].mean(axis=1).std())
    mean = float(values.mean())
    return float(np.clip(mean / spread, -1e6, 1e6)) if spread > 1e-12 * abs(mean) else float(np.sign(mean) * 1e6)
