"""Naming the cause of a difference between a device's embeddings and the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.diagnosis.catalogue import UNKNOWN, stages_of
from samespace.sdk.check.diagnosis.causes import Cause, Diagnosis, cause
from samespace.sdk.check.diagnosis.facts import RowFacts, row_facts
from samespace.sdk.check.diagnosis.garbage import has_fully_connected, is_garbage
from samespace.sdk.check.diagnosis.hypotheses import SINGLE_PROBES, Hypothesis, read_hypotheses, unit_rows
from samespace.sdk.check.diagnosis.judge import Judged, best, judge_all
from samespace.sdk.check.diagnosis.live import LiveArtifact
from samespace.sdk.check.diagnosis.pixels import explain_tensors
from samespace.sdk.check.diagnosis.revision import is_other_revision
from samespace.sdk.check.diagnosis.saturation import emulated_embeddings
from samespace.sdk.check.gate import Gate
from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.metrics import worst_percentile
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["diagnose"]

#: Most causes of one diagnosis.
_MOST = 3
#: Differences of a runtime's kernels from machine to machine: mean and largest squared distance (LiteRT's dynamic int8 is
#: worst).
_KERNELS = (6e-4, 4e-3)
#: Mean squared distance of a healthy artifact where it does not run here and can therefore not be measured.
_NOISE = {"fp32": 0.0, "fp16": 1e-6, "palette4": 0.02}
_QUANTISED_NOISE = 2e-3
#: Hypotheses that are tried again with the artifact itself, and the probes that do.
_REFINED, _REFINED_PROBES = 10, 32
#: Standard errors by which the emulated saturation, the only hypothesis of its kind, must be clear.
_ALONE = 2.5
#: A runner-up is named, too, when it leaves at most this much more than the best.
_NEAR = 1.25


def diagnose(
    bundle: Bundle,
    artifact: str,
    embeddings: npt.NDArray[np.floating],
    tensors: npt.NDArray[np.uint8] | None = None,
    *,
    live: bool = True,
) -> Diagnosis:
    """Why a device's embeddings of the bundle's probes are not what they should be.

    Args:
        bundle: an opened bundle with probes.
        artifact: name or path of the artifact that the device ran.
        embeddings: ``(n, d)``, as the device gave them: of any norm, with NaN, whatever.
        tensors: ``(n, size, size, 3)`` uint8 that the device fed, if known; of another shape or type they are ignored.
        live: whether the artifact may be run on this machine to compare with.

    Returns:
        No cause for a healthy artifact; else causes, best first, or the single cause ``unknown``.

    Raises:
        BundleError: the bundle has no usable probes, or no such artifact.
        DataError: embeddings of another shape than the reference.
    """
    probes = ProbeSet.from_bundle(bundle)
    if embeddings.shape != probes.reference.shape:
        raise DataError(
            f"embeddings of shape {embeddings.shape} cannot be diagnosed: the bundle has probes for {probes.reference.shape}"
        )
    facts = row_facts(embeddings)
    found = [cause("fp16_overflow", facts.broken)] if facts.broken else []
    if not facts.usable.any():
        return Diagnosis(causes=tuple(found))
    spec = bundle.artifact(artifact).spec
    clean = np.where(facts.usable[:, None], embeddings, 0).astype(np.float64)
    device = unit_rows(clean)
    known = probes.mistakes.get("no_l2")
    found += _norm_cause(facts, known)
    runner = LiveArtifact(bundle, spec.path, probes) if live else None
    try:
        found += _direction(bundle, bundle.artifact(artifact), probes, device, facts.usable, tensors, runner, bool(found))
    finally:
        if runner is not None:
            runner.close()
    return Diagnosis(causes=tuple(found[:_MOST]))


def _norm_cause(facts: RowFacts, raw: npt.NDArray[np.floating] | None) -> list[Cause]:
    if not facts.unnormalised:
        return []
    if facts.scaled and (raw is None or not row_facts(raw).scaled):
        return [cause(UNKNOWN, 0.0)]  # the norms are wrong, but not this model's
    return [cause("no_l2", facts.unnormalised)]


def _direction(
    bundle: Bundle,
    loaded: LoadedArtifact,
    probes: ProbeSet,
    device: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
    tensors: npt.NDArray[np.uint8] | None,
    runner: LiveArtifact | None,
    something: bool,
) -> list[Cause]:
    """Causes of wrong directions; ``something`` says that another cause has been found already."""
    reference, precision = probes.reference, loaded.spec.precision
    passes = _passes(device[usable], reference[usable], precision)
    if precision == "fp32" and passes:
        return []
    here = runner.right() if runner is not None else None
    healthy_here = here is not None and _passes(here, reference, precision)
    if here is not None and healthy_here and passes and _kernels_only(device[usable], here[usable]):
        return []
    noise = _noise(here if healthy_here else None, reference, precision)
    hypotheses: Sequence[Hypothesis] = read_hypotheses(probes.mistakes)
    seen = None
    if tensors is not None and tensors.shape == probes.golden.shape and tensors.dtype == np.uint8:
        seen = explain_tensors(bundle.manifest.model.preprocess, probes, tensors)
        hypotheses = [hypothesis for hypothesis in hypotheses if _consistent(hypothesis, seen)]
    judged = judge_all(device, usable, reference, hypotheses, noise)
    order = best(judged)
    if order and healthy_here and here is not None and runner is not None and precision not in ("fp32", "fp16"):
        order = _refined(runner, here, device, usable, judged) or order
    if order:
        return _named(order)
    if isinstance(seen, tuple) and not passes:
        return [cause(fault.partition("@")[0], 1.0) for fault in seen]
    if passes or (something and _near(device[usable], reference[usable])):
        return []
    if _saturates(loaded, probes, device, usable, runner):
        return [cause("int8_saturation", 1.0)]
    if _is_coarse(loaded, probes, device, usable, runner):
        return [cause("quantisation_error", 1.0)]
    if is_other_revision(device[usable], reference[usable], probes.cloud[usable]):
        return [cause("other_revision", 1.0)]
    if _misread(loaded, device[usable], reference[usable]):
        return [cause("fc_garbage", 1.0)]
    return [] if something else [cause(UNKNOWN, 0.0)]


def _saturates(
    loaded: LoadedArtifact,
    probes: ProbeSet,
    device: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
    runner: LiveArtifact | None,
) -> bool:
    """Whether int8 saturation explains the embeddings: as emulated, or as it happens on this very machine."""
    spec = loaded.spec
    if spec.precision != "int8" or spec.format not in ("onnx", "ort"):
        return False
    if runner is not None:
        fast, exact = runner.right(), runner.right(optimise=False)
        if fast is not None and exact is not None and _kernels_only(device[usable], fast[usable]):
            return _distance(fast, probes.reference).mean() > 4 * _distance(exact, probes.reference).mean()
    saturated = _emulated(loaded, probes, saturating=True)
    exact = _emulated(loaded, probes, saturating=False)
    if saturated is None or exact is None or _kernels_only(saturated, exact):
        return False
    judged = judge_all(device, usable, probes.reference, [Hypothesis(("int8_saturation",), saturated)], _QUANTISED_NOISE)
    return any(item.clear_by(_ALONE) for item in judged)


def _is_coarse(
    loaded: LoadedArtifact,
    probes: ProbeSet,
    device: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
    runner: LiveArtifact | None,
) -> bool:
    """Whether the device gives what the artifact gives, here or by emulation: then it is the artifact that misses its gate."""
    if loaded.spec.precision == "fp32":
        return False
    own = runner.right() if runner is not None else _emulated(loaded, probes, saturating=False)
    if own is None:
        return False
    shown = usable[: len(own)]
    return _kernels_only(device[: len(own)][shown], own[shown])


def _emulated(loaded: LoadedArtifact, probes: ProbeSet, *, saturating: bool) -> npt.NDArray[np.float32] | None:
    """``(m, d)`` for the first probes, whatever the processor; None where the artifact is not int8 in ONNX."""
    spec = loaded.spec
    if spec.format != "onnx" or spec.precision != "int8":
        return None
    images = as_input(probes.golden[:SINGLE_PROBES], spec.input)
    return emulated_embeddings(loaded.single_file, spec.input.name, images, saturating=saturating)


def _misread(loaded: LoadedArtifact, device: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> bool:
    spec = loaded.spec
    if spec.format != "tflite" or spec.precision not in ("int8", "int8-dynamic"):
        return False
    return has_fully_connected(loaded.single_file) and is_garbage(device, reference)


def _passes(rows: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], precision: str) -> bool:
    try:
        limit = Gate.default(precision).worst_cosine
    except ConfigError:
        limit = Gate.default("int8").worst_cosine
    return worst_percentile(np.einsum("ij,ij->i", rows.astype(np.float64), reference.astype(np.float64)), 1.0) >= limit


def _near(rows: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> bool:
    return float(_distance(rows, reference).mean()) < _QUANTISED_NOISE


def _kernels_only(rows: npt.NDArray[np.float32], here: npt.NDArray[np.float32]) -> bool:
    distance = _distance(rows, here)
    return bool(distance.mean() <= _KERNELS[0] and distance.max() <= _KERNELS[1])


def _noise(here: npt.NDArray[np.float32] | None, reference: npt.NDArray[np.float32], precision: str) -> float:
    if here is not None:
        return float(_distance(here, reference).mean())
    return _NOISE.get(precision, _QUANTISED_NOISE)


def _distance(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = (a - b).astype(np.float64)
    return np.einsum("ij,ij->i", wide, wide)


def _consistent(hypothesis: Hypothesis, seen: tuple[str, ...] | str) -> bool:
    """Whether a hypothesis agrees with what the tensors show. Colour, layout and values may still go wrong after them."""
    after = {"colour", "layout", "values"}
    if seen == "unexplained":
        return False
    if seen == "right":
        return stages_of(hypothesis.causes) <= after
    shown = {fault.partition("@")[0] for fault in seen}
    more = set(hypothesis.causes) - shown
    return shown <= set(hypothesis.causes) and stages_of(tuple(more)) <= after


def _refined(
    runner: LiveArtifact,
    here: npt.NDArray[np.float32],
    device: npt.NDArray[np.float32],
    usable: npt.NDArray[np.bool_],
    judged: Sequence[Judged],
) -> list[Judged]:
    """Judge the nearest hypotheses again by what this very artifact gives with their mistakes, its quantisation included."""
    nearest = sorted(judged, key=lambda item: item.mean)[:_REFINED]
    single = sorted((item for item in judged if len(item.hypothesis.faults) == 1), key=lambda item: item.mean)[:4]
    tried = list({id(item): item for item in (*single, *nearest)}.values())
    count = min(_REFINED_PROBES, len(device))
    again = []
    for item in tried:
        rows = runner.mistaken(item.hypothesis.faults, count)
        again.append(item.hypothesis if rows is None else Hypothesis(item.hypothesis.faults, rows))
    return best(judge_all(device[:count], usable[:count], here[:count], again, 0.0))


def _named(order: Sequence[Judged]) -> list[Cause]:
    """The first hypothesis's causes, the heavier first; then what a hypothesis that fits nearly as well would add."""
    first = order[0]
    causes = list(first.hypothesis.causes)
    if len(causes) == 2:
        alone = {item.hypothesis.causes[0]: item.mean for item in reversed(order) if len(item.hypothesis.faults) == 1}
        causes.sort(key=lambda name: alone.get(name, np.inf))
    named = [cause(name, first.fit) for name in causes]
    for item in order[1:]:
        more = [name for name in item.hypothesis.causes if name not in causes]
        if more and len(item.hypothesis.faults) >= len(causes) and item.mean <= _NEAR * first.mean and len(named) < _MOST:
            causes += more[:1]
            named.append(cause(more[0], item.fit / 2))
    return named
