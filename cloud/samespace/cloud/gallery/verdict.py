"""Judging a device by the reference of its own artifact: the gate first, then which known mistake explains what is left.

The machinery is that of ``samespace check`` (:mod:`samespace.sdk.check.diagnosis`); here the pictures are the handshake's, and
each mistake was made with the very artifact that the device says it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.handshake import DEFAULT_GATES, Judgement
from samespace.cloud.gallery.references import Reference
from samespace.sdk.check.diagnosis.catalogue import CAUSES, UNKNOWN
from samespace.sdk.check.diagnosis.facts import row_facts
from samespace.sdk.check.diagnosis.garbage import is_garbage
from samespace.sdk.check.diagnosis.hypotheses import Hypothesis, read_hypotheses, unit_rows
from samespace.sdk.check.diagnosis.judge import best, judge_all
from samespace.sdk.check.diagnosis.revision import is_other_revision

__all__ = ["diagnosed_facts", "judge_by_reference"]

#: Mean squared distance by which kernels of a quantised artifact differ between healthy machines; float ones do not.
_KERNELS = {"fp32": 1e-7, "fp16": 1e-6}
_QUANTISED = 6e-4
#: The worst of a few pictures may lie so many times further from 1 than the gate of a precision with rounding: the gate is for
#: the worst hundredth of the bundle's own probes.
_FEW_PICTURES = 2.0
#: Mean and largest squared distance from the artifact's own rows that other kernels explain. Beyond it something is different,
#: and a mistake is named that explains it by fewer standard errors than one that nobody asked for.
_NEAR = (6e-4, 4e-3)
_ALONE = 2.5
_SATURATION = "int8_saturation"


def judge_by_reference(
    answer: npt.NDArray[np.float32],
    places: Sequence[int],
    reference: Reference,
    cloud: npt.NDArray[np.float32],
    gates: Mapping[str, Mapping[str, float]],
    precision: str,
) -> Judgement:
    """Judge a device's ``(n, d)`` unit-norm embeddings of n challenge pictures.

    Args:
        places: positions of the pictures in the reference.
        cloud: ``(n, d)`` what the gallery's model makes of the pictures.
        gates: of the model's bundle: precision -> limits.
        precision: of the artifact.
    """
    chosen = np.asarray(places, np.intp)
    right, expected = reference.right[chosen], reference.best[chosen]
    cosines = np.einsum("ij,ij->i", answer.astype(np.float64), expected.astype(np.float64))
    gate = gates.get(precision, {}).get("worst_cosine", DEFAULT_GATES[precision])
    bar = 1 - (1 if precision == "fp32" else _FEW_PICTURES) * (1 - gate)
    worst, n = float(cosines.min()), len(cosines)
    measured = {"worst_cosine": worst, "mean_cosine": float(cosines.mean()), "bar": bar, "pictures": float(n)}
    passes = worst >= bar
    causes = () if passes and precision == "fp32" else _causes(answer, chosen, right, reference, cloud, precision, passes)
    if passes and not causes:
        return Judgement(True, f"the worst of {n} cosines to the artifact's reference is {worst:.5f}", measured)
    names = causes or (UNKNOWN,)
    meaning = "; ".join(f"{name!r}: {CAUSES[name].summary}; mend: {CAUSES[name].mend}" for name in names)
    gated = f"needs {bar:.5f}" if not passes else f"would do with {bar:.5f}, but a mistake shows"
    reason = f"the worst of {n} cosines to the artifact's reference is {worst:.5f}, a {precision} artifact {gated}. {meaning}"
    return Judgement(False, reason, measured, names)


def diagnosed_facts(answer: npt.NDArray[np.floating]) -> tuple[str, ...]:
    """What rows that are no embeddings show by themselves: half precision that overflows, or a missing L2 norm."""
    facts = row_facts(answer)
    if facts.broken:
        return ("fp16_overflow",)
    return ((UNKNOWN if facts.scaled else "no_l2"),) if facts.unnormalised else ()


def _causes(
    answer: npt.NDArray[np.float32],
    chosen: npt.NDArray[np.intp],
    right: npt.NDArray[np.float32],
    reference: Reference,
    cloud: npt.NDArray[np.float32],
    precision: str,
    passes: bool,
) -> tuple[str, ...]:
    usable = np.ones(len(answer), np.bool_)
    noise = _KERNELS.get(precision, _QUANTISED)
    rows = {name: mistaken[chosen] for name, mistaken in reference.mistakes.items() if len(mistaken) == len(reference.right)}
    saturated = rows.pop(_SATURATION, None)
    judged = judge_all(answer, usable, right, read_hypotheses(rows), noise)
    order = best(judged)
    if order:
        return order[0].hypothesis.causes
    distance = np.square((answer - right).astype(np.float64)).sum(axis=1)
    if passes and distance.mean() <= _NEAR[0] and distance.max() <= _NEAR[1]:
        return ()
    if clear := [item for item in judged if item.clear_by(_ALONE)]:
        return min(clear, key=lambda item: item.mean).hypothesis.causes
    if passes:
        return ()
    if saturated is not None:
        judged = judge_all(answer, usable, right, [Hypothesis((_SATURATION,), unit_rows(saturated))], noise)
        if any(item.clear_by(_ALONE) for item in judged):
            return (_SATURATION,)
    if is_other_revision(answer, right, cloud):
        return ("other_revision",)
    if reference.fully_connected and is_garbage(answer, right):
        return ("fc_garbage",)
    return ()
