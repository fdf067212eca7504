"""Explaining an app's tensors: beside the golden ones, and beside what each mistake makes of the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.diagnosis.faults import Recipe, faulty_tensors, faulty_values, stage_of
from samespace.sdk.check.diagnosis.hypotheses import pairs, singles
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.probes import ProbeSet

__all__ = ["explain_tensors"]

#: Libraries round and decode differently by a level or so.
_SAME_LEVELS = 2
#: Share of the difference from the golden tensors that a mistake must explain.
_FIT = 0.85
#: ... and when one explains this share, no second is looked for.
_ENOUGH = 0.97
#: A second mistake must leave less than this share of what one leaves.
_PAIR_GAIN = 0.5
#: Of so many first probes; pictures can be large.
_PROBES = 32
#: Values that leave the range of bytes cannot be seen in bytes.
_INVISIBLE = {"range_01", "mean_std_twice"}


def explain_tensors(
    preprocess: Preprocess, probes: ProbeSet, tensors: npt.NDArray[np.uint8]
) -> tuple[str, ...] | Literal["right", "unexplained"]:
    """Which mistakes made these tensors.

    Args:
        preprocess: of the model.
        probes: images and golden tensors.
        tensors: ``(n, size, size, 3)`` uint8, the app's.

    Returns:
        ``right``; or one or two names of mistakes; or ``unexplained``.
    """
    difference = np.abs(tensors.astype(np.int16) - probes.golden.astype(np.int16))
    if difference.max(initial=0) <= _SAME_LEVELS or difference.mean() < 0.25:
        return "right"
    # Those that differ first: EXIF matters to turned pictures only.
    by_size = np.argsort(-difference.reshape(len(difference), -1).mean(axis=1), kind="stable")
    chosen = np.sort(by_size[:_PROBES])
    before = float(difference[chosen].mean())
    alone = _nearest(preprocess, probes, tensors, chosen, [(fault,) for fault in singles()])
    best = alone
    if alone[0] > (1 - _ENOUGH) * before:
        together = _nearest(preprocess, probes, tensors, chosen, pairs())
        best = together if together[0] < _PAIR_GAIN * alone[0] else alone
    if 1 - best[0] / before < _FIT:
        return "unexplained"
    return tuple(sorted(best[1], key=stage_of))


def _nearest(
    preprocess: Preprocess,
    probes: ProbeSet,
    tensors: npt.NDArray[np.uint8],
    chosen: npt.NDArray[np.intp],
    combinations: Sequence[tuple[str, ...]],
) -> tuple[float, tuple[str, ...]]:
    """Mean difference in levels that the best of these mistakes leaves, and which they are."""
    visible = [faults for faults in combinations if not _INVISIBLE.intersection(faults)]
    recipes = [Recipe.of(*faults) for faults in visible]
    left = np.zeros(len(visible))
    for index in chosen:
        for place, tensor in enumerate(faulty_tensors(preprocess, probes.images[index], recipes)):
            values = np.rint(faulty_values(preprocess, tensor, recipes[place].values)).clip(0, 255)
            left[place] += np.abs(values - tensors[index]).mean() / len(chosen)
    best = int(left.argmin())
    return float(left[best]), visible[best]
