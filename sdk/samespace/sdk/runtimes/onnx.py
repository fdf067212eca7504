"""ONNX artifacts, by onnxruntime: on the CPU, or on the execution providers that the options name."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError, MissingExtraError, RuntimeFailure
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["OnnxRuntime", "load_onnxruntime", "open_session"]


class OnnxRuntime(Runtime):
    """Runs a ``.onnx`` artifact straight from its verified bytes."""

    name: ClassVar[str] = "onnx"
    format: ClassVar[str] = "onnx"
    #: As onnxruntime calls the format.
    stored_as: ClassVar[Literal["ONNX", "ORT"]] = "ONNX"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def __init__(self, artifact: LoadedArtifact, options: RuntimeOptions | None = None) -> None:
        super().__init__(artifact, options)
        self._session = open_session(
            artifact.single_file,
            artifact.spec.path,
            self.options.threads,
            providers=self.options.providers,
            optimise=self.options.optimise,
            stored_as=self.stored_as,
        )
        inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        wanted, spec = artifact.spec.input, artifact.spec
        if set(inputs) != {wanted.name}:
            raise RuntimeFailure(
                f"{spec.path}: the graph's inputs are {sorted(inputs)}, the manifest says {wanted.name!r}; export it again"
            )
        if spec.output not in outputs:
            raise RuntimeFailure(
                f"{spec.path}: the graph's outputs are {outputs}, the manifest says {spec.output!r}; export it again"
            )
        dtype = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}.get(inputs[wanted.name].type, inputs[wanted.name].type)
        if dtype != wanted.dtype:
            raise RuntimeFailure(
                f"{spec.path}: input {wanted.name!r} is {dtype}, the manifest says {wanted.dtype}; export it again"
            )

    @classmethod
    def unavailable(cls) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return str(MissingExtraError("onnx", f"running a .{cls.format} artifact"))
        return None

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        spec = self.artifact.spec
        try:
            return self._session.run([spec.output], {spec.input.name: as_input(images, spec.input)})[0]
        except Exception as error:
            raise RuntimeFailure(
                f"{spec.path}: onnxruntime failed on a batch of {len(images)}: {_first_line(error)}"
            ) from error


def open_session(
    model: bytes,
    path: str,
    threads: int = 0,
    *,
    providers: Sequence[str] = (),
    optimise: bool = True,
    stored_as: Literal["ONNX", "ORT"] = "ONNX",
) -> Any:
    """An ``onnxruntime.InferenceSession`` from bytes.

    Args:
        model: the serialised graph.
        path: how messages call it.
        threads: intra-op threads; 0 means that onnxruntime chooses.
        providers: execution providers, best first; the CPU takes what they leave. Empty means the CPU.
        optimise: False runs the graph as it was written; of an ORT file, without the fusions that are kept beside its graph.
        stored_as: format of the bytes.

    Raises:
        ConfigError: an execution provider that this onnxruntime has not; lists those it has.
        RuntimeFailure: onnxruntime refuses the bytes, or a provider does not work on this machine.
    """
    ort = load_onnxruntime()
    wanted = _known_providers(ort, providers)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.load_model_format", stored_as)
    if not optimise:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif stored_as == "ORT":
        # The bytes were verified: what is replayed is what our exporter wrote.
        settings.add_session_config_entry("session.enable_saved_runtime_optimizations", "1")
    try:
        session = ort.InferenceSession(model, settings, providers=wanted)
    except Exception as error:
        raise RuntimeFailure(f"{path}: onnxruntime {ort.__version__} refuses it: {_first_line(error)}") from error
    # A provider that cannot start is left out with no more than a printed line.
    if missing := [name for name in wanted if name not in session.get_providers()]:
        raise RuntimeFailure(
            f"{path}: the execution provider {missing[0]} does not work here: is its driver or library missing?"
        )
    return session


def _known_providers(ort: ModuleType, providers: Sequence[str]) -> list[str]:
    known: list[str] = ort.get_available_providers()
    for name in providers:
        if name not in known:
            raise ConfigError(
                f"this onnxruntime has no execution provider {name!r}; it has: {', '.join(known)}. Others come with other "
                "distributions, e.g. onnxruntime-gpu"
            )
    return list(dict.fromkeys((*providers, "CPUExecutionProvider")))


def load_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry switched off: from 1.29 on, its Linux wheels open sockets at import otherwise.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnx", "running a .onnx artifact") from None
    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
