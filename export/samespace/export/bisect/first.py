"""Naming the first diverging operation of an artifact."""

from __future__ import annotations

import importlib

import numpy as np
import numpy.typing as npt

from samespace.export.bisect.compare import Divergence, diverging_step
from samespace.export.bisect.steps import Trace, Tracer
from samespace.sdk.check.gate import Gate
from samespace.sdk.errors import ConfigError
from samespace.sdk.runtimes.base import LoadedArtifact

__all__ = ["TRACERS", "first_divergence", "traced"]

#: Runtime of the registry -> "module:function" that looks into artifacts as it runs them. The first of a format is its default.
TRACERS: dict[str, tuple[str, str]] = {
    "onnx": ("onnx", "samespace.export.bisect.onnx:trace"),
    "ort": ("ort", "samespace.export.bisect.onnx:trace_ort"),
    "tflite": ("tflite", "samespace.export.bisect.tflite:trace"),
    "tflite_runtime": ("tflite", "samespace.export.bisect.tflite:trace"),
    "coreml_reference": ("coreml", "samespace.export.bisect.coreml:trace"),
}


def first_divergence(
    artifact: LoadedArtifact,
    reference: LoadedArtifact | None,
    tensors: npt.NDArray[np.uint8],
    *,
    runtime: str | None = None,
    optimise: bool = True,
    limit: float | None = None,
) -> Divergence | None:
    """Name the first operation of an artifact that computes something else than the reference's does.

    Args:
        artifact: what diverges.
        reference: the same model in the same format, known to be right: the fp32 artifact of the bundle, or one fresh from
            the torch model. None takes the artifact itself as it is written: without the runtime's graph optimisations or
            delegates, and in the format's default runtime.
        tensors: ``(n, size, size, 3)`` uint8, preprocessed images, best those whose embeddings are worst; all intermediate
            results of all n are held in memory, twice.
        runtime: where the artifact diverges; None takes the format's default.
        optimise: False runs the artifact as it is written as well; a divergence that is gone then is the runtime's.
        limit: lowest agreement of the embeddings that is no divergence; None takes the gate of the artifact's precision.

    Returns:
        None where the embeddings agree.

    Raises:
        ConfigError: a format or runtime that cannot be looked into, or a reference of another format.
        RuntimeFailure: an artifact does not run.
    """
    spec = artifact.spec
    if reference is not None and reference.spec.format != spec.format:
        raise ConfigError(f"{spec.name} can be compared with another {spec.format} artifact only, not {reference.spec.name}")
    if reference is None and spec.format == "coreml":
        raise ConfigError(
            f"{spec.name}: Core ML programs are not optimised here, so a reference is needed: a coreml-fp32 artifact"
        )
    if limit is None:
        limit = Gate.default(spec.precision).worst_cosine
    suspect = traced(artifact, tensors, runtime, optimise=optimise)
    known = traced(artifact, tensors, optimise=False) if reference is None else traced(reference, tensors)
    return diverging_step(suspect, known, limit)


def traced(
    artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], runtime: str | None = None, *, optimise: bool = True
) -> Trace:
    """An artifact's steps; see :func:`first_divergence`."""
    fitting = [name for name, (format, _) in TRACERS.items() if format == artifact.spec.format]
    name = runtime or next(iter(fitting), None)
    if name not in fitting:
        raise ConfigError(
            f"{artifact.spec.path}: its operations cannot be looked at in {name or 'any runtime'}; there is: "
            f"{', '.join(TRACERS)}. An .onnx artifact of the same precision shows whether the weights are at fault"
        )
    module, _, attribute = TRACERS[name][1].partition(":")
    tracer: Tracer = getattr(importlib.import_module(module), attribute)
    return tracer(artifact, tensors, runtime=name, optimise=optimise)
