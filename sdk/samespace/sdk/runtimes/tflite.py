"""TFLite artifacts, by LiteRT (``ai-edge-litert``), or by ``tflite-runtime`` where only that exists (32-bit ARM, NumPy < 2).

:mod:`samespace.sdk.runtimes.tflite_runtime` runs tflite-runtime wherever it is, to see what old devices would see.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import MissingExtraError, RuntimeFailure
from samespace.sdk.manifest import Artifact
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["TfliteRuntime", "check_interface"]

#: Best first: tflite-runtime 2.14 crashes on damaged files and misreads some int8 operators, LiteRT does neither.
_INTERPRETERS = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


class TfliteRuntime(Runtime):
    """Runs a ``.tflite`` artifact from its verified bytes, with XNNPACK (the interpreters' default).

    The file has a fixed batch of 1; a larger batch resizes the input tensor, which lays out memory anew. The last size is
    kept, so that a run of equal batches pays once.
    """

    name: ClassVar[str] = "tflite"
    format: ClassVar[str] = "tflite"
    packages: ClassVar[tuple[str, ...]] = ("ai-edge-litert", "tflite-runtime")
    #: Modules that bring an interpreter, best first.
    interpreters: ClassVar[tuple[str, ...]] = _INTERPRETERS

    def __init__(self, artifact: LoadedArtifact, options: RuntimeOptions | None = None) -> None:
        super().__init__(artifact, options)
        spec = artifact.spec
        module = _load_interpreter(self.interpreters)
        more = {}
        if not self.options.optimise:
            more["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            # The interpreter reads the model where it lies: the bytes must live as long as it does.
            self._model = artifact.single_file
            self._interpreter: Any = module.Interpreter(
                model_content=self._model, num_threads=self.options.threads or None, **more
            )
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        except Exception as error:
            raise RuntimeFailure(f"{spec.path}: the TFLite interpreter refuses it: {_one_line(error)}") from error
        check_interface(spec, [np.dtype(entrance["dtype"]).name for entrance in inputs], len(outputs))
        self._input: int = inputs[0]["index"]
        self._output: int = outputs[0]["index"]
        self._shape: tuple[int, ...] = tuple(int(edge) for edge in inputs[0]["shape"])
        self._ready = False

    @classmethod
    def unavailable(cls) -> str | None:
        if any(_usable(name) and importlib.util.find_spec(name.partition(".")[0]) for name in cls.interpreters):
            return None
        return str(MissingExtraError("tflite", "running a .tflite artifact"))

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        tensor = as_input(images, self.artifact.spec.input)
        try:
            if tensor.shape != self._shape:
                self._ready = False
                self._interpreter.resize_tensor_input(self._input, tensor.shape)
                self._shape = tensor.shape
            if not self._ready:
                self._interpreter.allocate_tensors()
                self._ready = True
            self._interpreter.set_tensor(self._input, tensor)
            self._interpreter.invoke()
            # get_tensor copies: the next call may overwrite the interpreter's memory.
            return self._interpreter.get_tensor(self._output)
        except Exception as error:
            self._ready = False
            raise RuntimeFailure(
                f"{self.artifact.spec.path}: the TFLite interpreter failed on a batch of {len(images)}: {_one_line(error)}"
            ) from error


def check_interface(spec: Artifact, inputs: Sequence[str], outputs: int) -> None:
    """Compare what a file has with what the manifest says.

    Args:
        spec: the manifest's entry.
        inputs: dtypes of the file's inputs.
        outputs: how many outputs it has.

    Raises:
        RuntimeFailure: not one input and one output, or an input of another dtype.
    """
    if len(inputs) != 1 or outputs != 1:
        raise RuntimeFailure(
            f"{spec.path}: expected one input and one output, it has {len(inputs)} and {outputs}; export it again"
        )
    if inputs[0] != spec.input.dtype:
        raise RuntimeFailure(f"{spec.path}: the input is {inputs[0]}, the manifest says {spec.input.dtype}; export it again")


def _usable(name: str) -> bool:
    # Its import passes under NumPy 2, and then nothing works.
    return not name.startswith("tflite_runtime") or int(np.__version__.partition(".")[0]) < 2


def _load_interpreter(names: Sequence[str]) -> Any:
    """The first of these modules that can be imported."""
    for name in names:
        try:
            if _usable(name):
                return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtraError("tflite", "running a .tflite artifact")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
