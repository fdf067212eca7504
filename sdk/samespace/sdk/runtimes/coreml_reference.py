"""Core ML artifacts on any system: the ML Program is read from the package's bytes, translated to ONNX and run by onnxruntime.

It checks the graph, the weights, their decompression and the fp16 storage rounding. It cannot check Apple's kernels, which also
accumulate in fp16 on some compute units.

Tolerance: an fp32 program agrees with the torch model it came from to about 1e-6 in each component of a unit-norm
embedding. An fp16 program differs from torch fp32 as fp16 storage does (the export gate is a worst-1 % cosine of 0.999).
"""

from __future__ import annotations

import importlib.util
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import MissingExtraError, RuntimeFailure
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.onnx import open_session
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["CoremlReferenceRuntime"]


class CoremlReferenceRuntime(Runtime):
    """Evaluates an ``.mlpackage`` without Core ML: fp32 arithmetic, each result rounded to its declared dtype."""

    name: ClassVar[str] = "coreml_reference"
    format: ClassVar[str] = "coreml"
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    def __init__(self, artifact: LoadedArtifact, options: RuntimeOptions | None = None) -> None:
        super().__init__(artifact, options)
        reason = self.unavailable()
        if reason is not None:
            raise MissingExtraError("coreml", "evaluating an .mlpackage artifact")
        from samespace.sdk.runtimes.mil.program import read_package
        from samespace.sdk.runtimes.mil.translate import translate

        spec = artifact.spec
        try:
            program = read_package(artifact.files)
            model = translate(program)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            raise RuntimeFailure(f"{spec.path}: the Core ML package cannot be evaluated: {error}") from error
        if set(program.inputs) != {spec.input.name} or spec.output not in program.outputs:
            raise RuntimeFailure(
                f"{spec.path}: the program takes {sorted(program.inputs)} and gives {list(program.outputs)}, the manifest says "
                f"{spec.input.name!r} and {spec.output!r}; export it again"
            )
        is_image = spec.input.name in program.images
        if is_image != (spec.input.dtype == "image"):
            raise RuntimeFailure(
                f"{spec.path}: the input is {'an image' if is_image else 'an array'}, the manifest says {spec.input.dtype}"
            )
        self._reversed = program.images.get(spec.input.name) == "BGR"
        self._session = open_session(model, spec.path, self.options.threads)

    @classmethod
    def unavailable(cls) -> str | None:
        if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")):
            return str(MissingExtraError("coreml", "evaluating an .mlpackage artifact"))
        return None

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        spec = self.artifact.spec
        # Core ML hands the channels to the program in the order that the package asks for.
        tensor = as_input(images[..., ::-1] if self._reversed else images, spec.input)
        try:
            return self._session.run([spec.output], {spec.input.name: tensor.astype(np.float32)})[0]
        except Exception as error:
            raise RuntimeFailure(f"{spec.path}: evaluating the Core ML program failed: {error}") from error
