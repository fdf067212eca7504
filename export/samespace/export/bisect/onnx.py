"""ONNX, and onnxruntime's own format: the results of all nodes become outputs of the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.export.bisect.steps import Step, Trace
from samespace.sdk.errors import ExportError, MissingExtraError, RuntimeFailure
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.runtimes.onnx import load_onnxruntime
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["trace", "trace_graph", "trace_ort"]

_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
#: What onnxruntime folds into the quantised operator before it.
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid")


def trace(artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], *, runtime: str = "onnx", optimise: bool = True) -> Trace:
    """See :class:`~samespace.export.bisect.steps.Tracer`."""
    return trace_graph(artifact.single_file, artifact, as_input(tensors, artifact.spec.input), optimise=optimise)


def trace_ort(
    artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], *, runtime: str = "ort", optimise: bool = True
) -> Trace:
    """The same for ``.ort`` files: the graph in them, optimised by this machine's onnxruntime like any ONNX graph."""
    from samespace.export.formats.ort import to_onnx

    try:
        graph = to_onnx(artifact.single_file)
    except ExportError as error:
        raise RuntimeFailure(f"{artifact.spec.path}: no ORT model: {error}") from error
    return trace_graph(graph, artifact, as_input(tensors, artifact.spec.input), optimise=optimise)


def trace_graph(graph: bytes, artifact: LoadedArtifact, images: npt.NDArray[Any], *, optimise: bool) -> Trace:
    """Trace a serialised ONNX graph.

    Args:
        graph: with the input and the output that the artifact's manifest entry names.
        artifact: for these names, and for messages.
        images: what the graph takes, n at a time or one by one.
        optimise: with or without onnxruntime's graph optimisations.

    An output keeps onnxruntime from fusing the operators around it. Of quantised operators it is therefore the quantised
    result that becomes an output, so that they run as the integer kernels that they run as on the device.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("export", "bisecting an ONNX graph") from None
    path = artifact.spec.path
    try:
        model: Any = onnx.load_model_from_string(graph)
    except Exception as error:
        raise RuntimeFailure(f"{path}: no ONNX graph: {_first_line(error)}") from error
    seen = _seen(model.graph, artifact.spec.input.name, artifact.spec.output)
    there = {output.name for output in model.graph.output}
    shown = dict.fromkeys(show for _, _, show in seen)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown if name not in there)
    values = dict(zip(shown, _run(model.SerializeToString(), artifact, images, list(shown), optimise), strict=True))
    scales = _scales(model.graph)
    steps = []
    for index, result, show in seen:
        node, value = model.graph.node[index], values[show]
        if show in scales:
            scale, zero = scales[show]
            value = (value.astype(np.float32) - zero) * scale
        if value.dtype.kind == "f" and value.ndim > 1 and len(value) == len(images):
            steps.append(Step(node.op_type, node.name or result, index, result, value.astype(np.float32)))
    parents = {result: tuple(node.input) for node in model.graph.node for result in node.output}
    return Trace(tuple(steps), parents)


def _seen(graph: Any, image: str, embedding: str) -> list[tuple[int, str, str]]:
    """(index of the node, its result, the tensor to show for it) of all nodes that depend on the image, in order."""
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    live, found = {image}, []
    for index, node in enumerate(graph.node):
        if not live & set(node.input):
            continue
        live |= set(node.output)
        result = node.output[0]
        if result == embedding:
            found.append((index, result, result))
        elif node.op_type not in (_QUANTISE, _DEQUANTISE):
            users = consumers.get(result, [])
            quantised = next((user.output[0] for user in users if user.op_type == _QUANTISE), None)
            if quantised is None and _is_folded(users, consumers):
                continue
            found.append((index, result, quantised or result))
    return found


def _is_folded(users: list[Any], consumers: dict[str, list[Any]]) -> bool:
    """Whether a result goes into nothing but an activation, and that one's into a quantisation."""
    if len(users) != 1 or users[0].op_type not in _ACTIVATIONS:
        return False
    return any(user.op_type == _QUANTISE for user in consumers.get(users[0].output[0], []))


def _scales(graph: Any) -> dict[str, tuple[Any, Any]]:
    """Quantised tensor -> scale and zero point, where these are constants of the whole tensor."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == _QUANTISE and node.input[1] in constants:
            scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
            zero = np.float32(0)
            if len(node.input) > 2 and node.input[2] in constants:
                zero = numpy_helper.to_array(constants[node.input[2]]).astype(np.float32)
            if scale.size == 1:
                found[node.output[0]] = (scale.reshape(()), np.reshape(zero, ()))
    return found


def _run(graph: bytes, artifact: LoadedArtifact, images: npt.NDArray[Any], wanted: list[str], optimise: bool) -> list[Any]:
    ort = load_onnxruntime()
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    if not optimise:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    step = len(images) if artifact.spec.input.dynamic_batch else 1
    try:
        session = ort.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
        name = artifact.spec.input.name
        parts = [session.run(wanted, {name: images[start : start + step]}) for start in range(0, len(images), step)]
    except Exception as error:
        raise RuntimeFailure(f"{artifact.spec.path}: onnxruntime failed on it: {_first_line(error)}") from error
    # A value without a batch dimension (a shape, say) is the same each time.
    return [np.concatenate(values) if np.ndim(values[0]) else values[0] for values in zip(*parts, strict=True)]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
