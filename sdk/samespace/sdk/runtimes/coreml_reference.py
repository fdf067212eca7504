"""Core ML artifacts on any system: the ML Program is read from the package's bytes, translated to ONNX and run by onnxruntime.

It checks the graph, the weights, their decompression and the fp16 storage rounding. It cannot check Apple's kernels, which also
accumulate in fp16 on some compute units.

Tolerance, against the exact result of each operation: :data:`FP32_TOLERANCE` where the program says fp32, and
:data:`FP16_TOLERANCE` where it says fp16, which is one unit in the last place: the result is computed in fp32 and rounded once.
A whole fp32 program agrees with the torch model that it came from to :data:`EMBEDDING_TOLERANCE` in each component of a
unit-norm embedding; an fp16 program differs from it as fp16 storage does (the export gate is a worst-1 % cosine of 0.999).
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

__all__ = ["EMBEDDING_TOLERANCE", "FP16_TOLERANCE", "FP32_TOLERANCE", "CoremlReferenceRuntime"]

#: Of one operation, relative and absolute: onnxruntime's kernels and torch's sum in different orders.
FP32_TOLERANCE = 2e-5
#: Of one operation, relative: the spacing of fp16 numbers of 11 significant bits.
FP16_TOLERANCE = 2.0**-10
#: Of each component of the unit-norm embedding of an fp32 program, absolute.
EMBEDDING_TOLERANCE = 5e-6


class CoremlReferenceRuntime(Runtime):
    """Evaluates an ``.mlpackage`` without Core ML: fp32 arithmetic, each result rounded to its declared dtype.

    Of the options it takes ``threads`` and ``optimise`` (of onnxruntime's graph; the roundings are the same with it).
    """

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
        except Exception as error:
            # Whatever damaged bytes lead to, memory that is not there included.
            reason = str(error) or type(error).__name__
            raise RuntimeFailure(f"{spec.path}: the Core ML package cannot be evaluated: {reason}") from error
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
        order = program.images.get(spec.input.name, "RGB")
        if order not in ("RGB", "BGR"):
            raise RuntimeFailure(f"{spec.path}: its input is an image that is neither RGB nor BGR; export it again")
        self._reversed = order == "BGR"
        self._session = open_session(model, spec.path, self.options.threads, optimise=self.options.optimise)

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
