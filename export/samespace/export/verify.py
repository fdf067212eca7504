"""Judging a conversion: the exported bytes, run as a device would run them, against the torch model on real images.

What ``samespace check`` would fail is not exported: the cosine's gate, and where probes with a gallery are given, the overlap
of neighbours and the recall, each failed where its interval is beyond the limit. Every runtime of the format that this
machine has judges for itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.export.saturation import refuse_saturation
from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.gate import Gate
from samespace.sdk.check.report import RetrievalLayer, Settings
from samespace.sdk.check.retrieval import measure_retrieval
from samespace.sdk.errors import ExportError, SamespaceError
from samespace.sdk.metrics.agreement import cosine, worst_percentile
from samespace.sdk.metrics.arrays import NORM_TOLERANCE
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import LoadedArtifact, RuntimeOptions
from samespace.sdk.runtimes.registry import open_runtime, runtime_class, runtimes_for

__all__ = ["Agreement", "judging_runtimes", "measure_agreement", "verify"]

#: Largest difference of a component between an image alone and the same image in a batch, in fp32 and in other precisions.
_BATCH_TOLERANCE, _BATCH_TOLERANCE_COARSE = 1e-4, 1e-3
#: Images that are run alone.
_ALONE = 8


@dataclass(frozen=True)
class Agreement:
    """How well an artifact agrees with its torch model in one runtime.

    Attributes:
        artifact: name, e.g. ``"onnx-fp32"``.
        runtime: that ran it, with its version.
        n: probe images.
        worst_cosine: first percentile of the cosines; ``limit`` is the least that is accepted.
        min_cosine: the minimum, at the probe ``worst_probe`` (counted from 0).
        norm_error: largest difference of a norm from 1.
        batch_error: largest difference of a component between alone and in a batch; None where the batch is fixed.
        bytes: size of the artifact.
        overlap: mean share of the ten nearest in the gallery's sample that it has in common with the model; None without one.
        recall: ``{"difference", "low", "high", "n"}``: recall@1 of the artifact less the model's, query by query, with its
            interval of 95 %; None without labels.
        saturation: of onnxruntime's int8, see :class:`samespace.export.saturation.Saturation`; None of others.
        failed: which limits it misses, in words; empty when it meets all.
    """

    artifact: str
    runtime: str
    n: int
    worst_cosine: float
    limit: float
    min_cosine: float
    worst_probe: int
    norm_error: float
    batch_error: float | None
    bytes: int
    overlap: float | None = None
    recall: dict[str, float] | None = None
    saturation: dict[str, Any] | None = None
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    artifact: LoadedArtifact,
    tensors: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.float32],
    name: str = "",
    threads: int = 0,
    *,
    probes: ProbeSet | None = None,
    min_litert: str = "2.14",
) -> tuple[Agreement, ...]:
    """Run an artifact in every runtime that judges it, and compare.

    Args:
        artifact: the exported bytes.
        tensors: ``(n, size, size, 3)`` uint8 preprocessed real images.
        reference: ``(n, dim)`` unit-norm float32, by the torch model.
        name: how messages call the model.
        threads: of the runtime.
        probes: the same images with the gallery's sample, so that neighbours are judged, too.
        min_litert: oldest TensorFlow Lite runtime that it must run on.

    Raises:
        ExportError: the artifact does not run, is not unit-norm, misses a limit, gives an image in a batch another embedding
            than alone, or another one on other CPUs; names the artifact, the measured value, the limit and the worst probe.
    """
    agreements = measure_agreement(artifact, tensors, reference, name, threads, probes=probes, min_litert=min_litert)
    for agreement in agreements:
        if agreement.failed:
            raise ExportError(f"{agreement.failed}. Nothing was written")
    return agreements


def measure_agreement(
    artifact: LoadedArtifact,
    tensors: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.float32],
    name: str = "",
    threads: int = 0,
    *,
    probes: ProbeSet | None = None,
    min_litert: str = "2.14",
) -> tuple[Agreement, ...]:
    """As :func:`verify`, but a missed limit stands in ``failed``.

    Raises:
        ExportError: what comes out is no embedding at all, is none of this model in fp32, or depends on the CPU: nothing could
            excuse that.
    """
    what = f"{name} {artifact.spec.name}".strip()
    runtimes = judging_runtimes(artifact, min_litert) or (None,)
    found = tuple(_measure(artifact, runtime, tensors, reference, what, threads, probes) for runtime in runtimes)
    for agreement in found:
        if agreement.failed and artifact.spec.precision == "fp32":
            raise ExportError(f"{agreement.failed}. Nothing was written")
    if artifact.spec.format in ("onnx", "ort") and artifact.spec.precision == "int8":
        saturation = refuse_saturation(artifact, tensors, name, threads=threads).to_json()
        found = tuple(replace(agreement, saturation=saturation) for agreement in found)
    return found


def judging_runtimes(artifact: LoadedArtifact, min_litert: str = "2.14") -> tuple[str, ...]:
    """Names of the runtimes that this machine has for an artifact, without a ``tflite-runtime`` older than asked for."""
    names = runtimes_for(artifact.spec.format)
    return tuple(name for name in names if not _too_old(runtime_class(name).version(), min_litert))


def _too_old(version: str, min_litert: str) -> bool:
    # LiteRT counts its versions anew, so only those of tflite-runtime compare with TensorFlow Lite's.
    package, _, number = version.partition(" ")
    return package == "tflite-runtime" and _numbers(number) < _numbers(min_litert)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _measure(
    artifact: LoadedArtifact,
    runtime_name: str | None,
    tensors: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.float32],
    what: str,
    threads: int,
    probes: ProbeSet | None,
) -> Agreement:
    try:
        with open_runtime(artifact, runtime_name, RuntimeOptions(threads=threads)) as runtime:
            rows = runtime.run(tensors)
            version = f"{runtime.name} ({runtime.version()})"
        batch_error = _batch_error(artifact, runtime_name, tensors, rows, threads)
    except SamespaceError as error:
        where = f" in {runtime_name}" if runtime_name else ""
        raise _refused(what, f"the converted artifact does not run{where}: {error}") from error
    what = f"{what} in {version}"
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    # Written so that NaN counts as wrong.
    off = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
    if len(off):
        measured = f"the embedding of probe image {off[0]} has norm {norms[off[0]]:.4g}, not 1 (tolerance {NORM_TOLERANCE})"
        raise _refused(what, f"{measured}: the L2 norm is missing in the graph, or it overflows")
    tolerance = _BATCH_TOLERANCE if artifact.spec.precision == "fp32" else _BATCH_TOLERANCE_COARSE
    if batch_error is not None and not batch_error <= tolerance:
        measured = f"difference {batch_error:.2g}, limit {tolerance}"
        raise _refused(what, f"an image in a batch gets another embedding than alone ({measured}): the batch is mixed up")
    gate, precision = Gate.default(artifact.spec.precision), artifact.spec.precision
    cosines = cosine(rows, reference)
    worst, probe = worst_percentile(cosines, 1.0), int(cosines.argmin())
    missed = []
    if worst < gate.worst_cosine:
        missed.append(
            f"worst-1 % cosine to the torch model is {worst:.6f}, below the limit {gate.worst_cosine} for {precision} "
            f"(n={len(cosines)}, worst is probe image {probe} with {cosines[probe]:.6f})"
        )
    retrieval = None if probes is None else _retrieval(rows, probes)
    if retrieval is not None:
        missed += _missed(retrieval, gate, precision)
    recall = None if retrieval is None or 1 not in retrieval.recall else retrieval.recall[1].difference
    return Agreement(
        artifact=artifact.spec.name,
        runtime=version,
        n=len(cosines),
        worst_cosine=worst,
        limit=gate.worst_cosine,
        min_cosine=float(cosines[probe]),
        worst_probe=probe,
        norm_error=float(np.abs(norms - 1).max()),
        batch_error=batch_error,
        bytes=sum(len(data) for data in artifact.files.values()),
        overlap=None if retrieval is None else retrieval.overlap.value,
        recall=None
        if recall is None
        else {"difference": recall.value, "low": recall.low, "high": recall.high, "n": float(recall.n)},
        failed=f"{what}: {'; '.join(missed)}: the conversion changed the model" if missed else "",
    )


def _retrieval(rows: npt.NDArray[np.float32], probes: ProbeSet) -> RetrievalLayer:
    sample = GallerySample("the bundle's sample", probes.gallery, probes.gallery_labels)
    return measure_retrieval(rows, probes, sample, Settings())


def _missed(layer: RetrievalLayer, gate: Gate, precision: str) -> list[str]:
    """Limits that lie outside the interval. What few probes leave open is not refused, and stands in the evidence."""
    missed = []
    if layer.overlap.high < gate.overlap:
        missed.append(
            f"of the {layer.overlap_k} nearest in the gallery's sample it keeps {layer.overlap} %, "
            f"below the limit {100 * gate.overlap:g} for {precision}"
        )
    if 1 in layer.recall and layer.recall[1].difference.high < -gate.recall_margin:
        missed.append(
            f"recall@1 is {layer.recall[1].difference.text()} points of the model's (n={layer.queries}), "
            f"beyond the margin of {100 * gate.recall_margin:g} for {precision}"
        )
    return missed


def _refused(what: str, why: str) -> ExportError:
    return ExportError(f"{what}: {why}. Nothing was written")


def _batch_error(
    artifact: LoadedArtifact,
    runtime_name: str | None,
    tensors: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.float32],
    threads: int,
) -> float | None:
    if not artifact.spec.input.dynamic_batch:
        return None
    with open_runtime(artifact, runtime_name, RuntimeOptions(threads=threads, batch_size=1)) as runtime:
        alone = runtime.run(tensors[:_ALONE])
    return float(np.abs(alone - rows[:_ALONE]).max())
