"""TFLite: the results of all operators become outputs of the model."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.export.bisect.steps import Step, Trace
from samespace.sdk.errors import ConfigError, MissingExtraError, RuntimeFailure
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["trace"]

#: Runtime -> module of its interpreter.
_INTERPRETERS = {"tflite": "ai_edge_litert.interpreter", "tflite_runtime": "tflite_runtime.interpreter"}


def trace(artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], *, runtime: str = "tflite", optimise: bool = True) -> Trace:
    """See :class:`~samespace.export.bisect.steps.Tracer`. Without ``optimise`` there is no XNNPACK: the built-in kernels."""
    model, graph, operators = _model(artifact)
    kept = list(graph.outputs)
    results = [int(operator.outputs[0]) for operator in graph.operators]
    graph.outputs = np.array([*kept, *(index for index in dict.fromkeys(results) if index not in kept)], np.int32)
    details, values = _run(_packed(model), artifact, as_input(tensors, artifact.spec.input), runtime, optimise)
    # The interpreter gives its outputs in the order of the model's list.
    found = {int(index): (detail, value) for index, detail, value in zip(graph.outputs, details, values, strict=True)}
    names = [tensor.name.decode(errors="replace") for tensor in graph.tensors]
    steps = []
    for index, (operator, result) in enumerate(zip(operators, results, strict=True)):
        detail, value = found[result]
        value = _dequantised(value, detail["quantization_parameters"])
        # Weights that are widened when the model starts have no batch.
        if operator not in ("QUANTIZE", "DEQUANTIZE") and value is not None and value.ndim > 1 and len(value) == len(tensors):
            steps.append(Step(operator, f"{operator} {names[result]}", index, names[result], value))
    parents = {
        names[result]: tuple(names[entry] for entry in operator.inputs if entry >= 0)
        for operator, result in zip(graph.operators, results, strict=True)
    }
    return Trace(tuple(steps), parents)


def _model(artifact: LoadedArtifact) -> tuple[Any, Any, list[str]]:
    """The model as objects, its main graph, and the names of that graph's operators."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise MissingExtraError("tflite", "bisecting a TFLite model") from None
    codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    try:
        model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(artifact.single_file, 0))
        for buffer in model.buffers:
            # The quantiser writes weights behind the FlatBuffer, at offsets that no longer hold once it is packed again.
            if buffer.offset > 1:
                content = artifact.single_file[buffer.offset : buffer.offset + buffer.size]
                buffer.data, buffer.offset, buffer.size = np.frombuffer(content, np.uint8), 0, 0
        graph = model.subgraphs[0]
        entries = [model.operatorCodes[operator.opcodeIndex] for operator in graph.operators]
    except Exception as error:  # what the generated reader raises on broken files, whatever it is
        raise RuntimeFailure(f"{artifact.spec.path}: no TFLite model: {error or type(error).__name__}") from error
    # Codes above 127 are in the newer of the two fields only.
    return model, graph, [codes.get(max(entry.builtinCode, entry.deprecatedBuiltinCode), "CUSTOM") for entry in entries]


def _packed(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _run(
    model: bytes, artifact: LoadedArtifact, images: npt.NDArray[Any], runtime: str, optimise: bool
) -> tuple[list[dict[str, Any]], list[npt.NDArray[Any]]]:
    """Details and values of all outputs; image by image, as a batch of 1 is what the file has."""
    if runtime not in _INTERPRETERS:
        raise ConfigError(f"runtime {runtime!r} cannot be looked into; take one of: {', '.join(_INTERPRETERS)}")
    try:
        module = importlib.import_module(_INTERPRETERS[runtime])
    except ImportError:
        raise MissingExtraError("tflite", f"bisecting in {runtime}") from None
    options: dict[str, Any] = {}
    if not optimise:
        options["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = module.Interpreter(model_content=model, num_threads=1, **options)
        interpreter.allocate_tensors()
        details, rows = interpreter.get_output_details(), []
        for image in images:
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
            interpreter.invoke()
            rows.append([interpreter.get_tensor(detail["index"]) for detail in details])
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise RuntimeFailure(f"{artifact.spec.path}: the TFLite interpreter failed on it: {reason}") from error
    return details, [np.concatenate(values) if np.ndim(values[0]) else values[0] for values in zip(*rows, strict=True)]


def _dequantised(value: npt.NDArray[Any], parameters: Any) -> npt.NDArray[np.float32] | None:
    """float32 values; None for integers that stand for no real numbers."""
    if value.dtype.kind == "f":
        return value.astype(np.float32)
    if len(parameters["scales"]) != 1:
        return None
    return (value.astype(np.float32) - np.float32(parameters["zero_points"][0])) * np.float32(parameters["scales"][0])
