"""Judging a conversion: the exported bytes, run as a device would run them, against the torch model on real images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.gate import Gate
from samespace.sdk.errors import ExportError, SamespaceError
from samespace.sdk.metrics.agreement import cosine, worst_percentile
from samespace.sdk.metrics.arrays import NORM_TOLERANCE
from samespace.sdk.runtimes.base import LoadedArtifact, RuntimeOptions
from samespace.sdk.runtimes.registry import open_runtime

__all__ = ["Agreement", "verify"]

#: Largest difference of a component between an image alone and the same image in a batch.
_BATCH_TOLERANCE = 1e-4
#: Images that are run alone.
_ALONE = 8


@dataclass(frozen=True)
class Agreement:
    """How well an artifact agrees with its torch model.

    Attributes:
        artifact: name, e.g. ``"onnx-fp32"``.
        runtime: that ran it, with its version.
        n: probe images.
        worst_cosine: first percentile of the cosines; ``limit`` is the least that was accepted.
        min_cosine: the minimum, at the probe ``worst_probe`` (counted from 0).
        norm_error: largest difference of a norm from 1.
        batch_error: largest difference of a component between alone and in a batch; None where the batch is fixed.
        bytes: size of the artifact.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    artifact: LoadedArtifact,
    tensors: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.float32],
    name: str = "",
    threads: int = 0,
) -> Agreement:
    """Run an artifact and compare.

    Args:
        artifact: the exported bytes.
        tensors: ``(n, size, size, 3)`` uint8 preprocessed real images.
        reference: ``(n, dim)`` unit-norm float32, by the torch model.
        name: how messages call the model.
        threads: of the runtime.

    Raises:
        ExportError: the artifact does not run, is not unit-norm, differs too much from the reference, or gives an image in a
            batch another embedding than alone; names the artifact, the measured value, the limit and the worst probe.
    """
    what = f"{name} {artifact.spec.name}".strip()
    limit = Gate.default(artifact.spec.precision).worst_cosine
    try:
        with open_runtime(artifact, options=RuntimeOptions(threads=threads)) as runtime:
            rows = runtime.run(tensors)
            version = f"{runtime.name} ({runtime.version()})"
        batch_error = _batch_error(artifact, tensors, rows, threads)
    except SamespaceError as error:
        raise _refused(what, f"the converted artifact does not run: {error}") from error
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    # Written so that NaN counts as wrong.
    off = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
    if len(off):
        measured = f"the embedding of probe image {off[0]} has norm {norms[off[0]]:.4g}, not 1 (tolerance {NORM_TOLERANCE})"
        raise _refused(what, f"{measured}: the L2 norm is missing in the graph, or it overflows")
    cosines = cosine(rows, reference)
    worst, probe = worst_percentile(cosines, 1.0), int(cosines.argmin())
    if worst < limit:
        measured = f"worst-1 % cosine to the torch model is {worst:.6f}, below the limit {limit} for {artifact.spec.precision}"
        where = f"n={len(cosines)}, worst is probe image {probe} with {cosines[probe]:.6f}"
        raise _refused(what, f"{measured} ({where}): the conversion changed the model")
    if batch_error is not None and not batch_error <= _BATCH_TOLERANCE:
        measured = f"difference {batch_error:.2g}, limit {_BATCH_TOLERANCE}"
        raise _refused(what, f"an image in a batch gets another embedding than alone ({measured}): the batch is mixed up")
    return Agreement(
        artifact=artifact.spec.name,
        runtime=version,
        n=len(cosines),
        worst_cosine=worst,
        limit=limit,
        min_cosine=float(cosines[probe]),
        worst_probe=probe,
        norm_error=float(np.abs(norms - 1).max()),
        batch_error=batch_error,
        bytes=sum(len(data) for data in artifact.files.values()),
    )


def _refused(what: str, why: str) -> ExportError:
    return ExportError(f"{what}: {why}. Nothing was written")


def _batch_error(
    artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], rows: npt.NDArray[np.float32], threads: int
) -> float | None:
    if not artifact.spec.input.dynamic_batch:
        return None
    with open_runtime(artifact, options=RuntimeOptions(threads=threads, batch_size=1)) as runtime:
        alone = runtime.run(tensors[:_ALONE])
    return float(np.abs(alone - rows[:_ALONE]).max())
