"""The runtimes by name. To add one: write its file in this folder, and its line here."""

from __future__ import annotations

import importlib

from samespace.sdk.errors import ConfigError, MissingExtraError
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions

__all__ = ["RUNTIMES", "available", "open_runtime", "runtime_class", "runtimes_for", "why_unavailable"]

#: Name -> "module:Class"; imported when used. The first available one of a format is its default.
RUNTIMES: dict[str, str] = {
    "onnx": "samespace.sdk.runtimes.onnx:OnnxRuntime",
    "ort": "samespace.sdk.runtimes.ort:OrtRuntime",
    "tflite": "samespace.sdk.runtimes.tflite:TfliteRuntime",
    "coreml": "samespace.sdk.runtimes.coreml:CoremlRuntime",
    "coreml_reference": "samespace.sdk.runtimes.coreml_reference:CoremlReferenceRuntime",
    "executorch": "samespace.sdk.runtimes.executorch:ExecutorchRuntime",
    "tflite_runtime": "samespace.sdk.runtimes.tflite_runtime:OldTfliteRuntime",
}


def open_runtime(artifact: LoadedArtifact, name: str | None = None, options: RuntimeOptions | None = None) -> Runtime:
    """Open an artifact in the runtime of that name, or in the first one that this machine has for its format.

    Raises:
        ConfigError: no such runtime, one for another format, or none that works here.
        RuntimeFailure: the runtime refuses the artifact.
    """
    if name is None:
        candidates = runtimes_for(artifact.spec.format)
        name = next(iter(candidates), None)
        if name is None:
            raise ConfigError(f"no runtime on this machine runs {artifact.spec.path}: {_reasons(artifact.spec.format)}")
    kind = runtime_class(name)
    if kind.format != artifact.spec.format:
        fitting = ", ".join(runtimes_for(artifact.spec.format, installed_only=False)) or "none"
        raise ConfigError(
            f"runtime {name!r} runs {kind.format} artifacts; {artifact.spec.path} is {artifact.spec.format}: take {fitting}"
        )
    return kind(artifact, options)


def runtime_class(name: str) -> type[Runtime]:
    """The runtime's class; importing it loads no optional package.

    Raises:
        ConfigError: no runtime of that name; lists those there are.
    """
    target = RUNTIMES.get(name)
    if target is None:
        raise ConfigError(f"no runtime is called {name!r}; there are: {', '.join(RUNTIMES)}")
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def runtimes_for(format: str, *, installed_only: bool = True) -> tuple[str, ...]:
    """Names of the runtimes that run artifacts of ``format`` (by default: that work on this machine), best first."""
    names = (name for name in RUNTIMES if runtime_class(name).format == format)
    return tuple(name for name in names if not installed_only or available(name))


def available(name: str) -> bool:
    """Whether the runtime works on this machine: right system, its package installed. Imports nothing heavy.

    Raises:
        ConfigError: no runtime of that name.
    """
    return why_unavailable(name) is None


def why_unavailable(name: str) -> str | None:
    """What keeps the runtime from working here and what to do about it; ``None`` when it works."""
    return runtime_class(name).unavailable()


def _reasons(format: str) -> str:
    reasons = [f"{name}: {why_unavailable(name)}" for name in runtimes_for(format, installed_only=False)]
    return "; ".join(reasons) or str(MissingExtraError("onnx", f"an artifact of format {format!r}"))
