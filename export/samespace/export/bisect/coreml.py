"""Core ML: the reference evaluator's translation of the program, asked for the results of all operations.

Core ML itself shows no intermediate values, so a fault of Apple's kernels cannot be found this way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from samespace.export.bisect.onnx import trace_graph
from samespace.export.bisect.steps import Step, Trace
from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["trace"]


def trace(
    artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], *, runtime: str = "coreml_reference", optimise: bool = True
) -> Trace:
    """See :class:`~samespace.export.bisect.steps.Tracer`."""
    from samespace.sdk.runtimes.mil.decompress import DECOMPRESSORS
    from samespace.sdk.runtimes.mil.program import read_package
    from samespace.sdk.runtimes.mil.translate import translate

    spec = artifact.spec
    try:
        program = read_package(artifact.files)
        operations = [operation for operation in program.operations if operation.kind not in DECOMPRESSORS]
        names = [name for operation in operations for name in operation.outputs]
        graph = translate(replace(program, outputs=tuple(names)))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise RuntimeFailure(f"{spec.path}: the Core ML package cannot be evaluated: {error}") from error
    images = tensors[..., ::-1] if program.images.get(spec.input.name) == "BGR" else tensors
    traced = trace_graph(graph, artifact, as_input(images, spec.input).astype(np.float32), optimise=optimise)
    values = {step.result: step.value for step in traced.steps}
    steps, parents = [], {}
    for index, operation in enumerate(operations):
        taken = tuple(name for names in operation.inputs.values() for name in names)
        for result in operation.outputs:
            parents[result] = taken
            if result in values:
                steps.append(Step(operation.kind, result, index, result, values[result]))
    return Trace(tuple(steps), parents)
