"""ONNX and ORT files as graphs of costs."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from samespace.edge.devices.costs.graph import Graph, Operation, Value
from samespace.sdk.runtimes.onnx import load_onnxruntime

__all__ = ["onnx_graph", "ort_graph"]

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


def onnx_graph(model: bytes) -> Graph:
    """The graph of an ONNX file, for one image.

    A quantised operation is written as a float one between ``DequantizeLinear`` and ``QuantizeLinear``; it is counted as the
    kernel that runtimes make of it, which reads and writes the quantised tensors.

    Raises:
        ValueError: no ONNX file, or one that does not say how large its tensors are.
    """
    import onnx

    try:
        loaded = onnx.load_model_from_string(model)
        for value in loaded.graph.input:
            dims = value.type.tensor_type.shape.dim
            if len(dims) and not dims[0].dim_value:
                dims[0].dim_value = 1
        graph: Any = onnx.shape_inference.infer_shapes(loaded, strict_mode=True, data_prop=True).graph
    except Exception as error:  # whatever protobuf and shape inference raise
        raise ValueError(f"it is no ONNX file that can be counted: {error}") from error
    if not graph.output:
        raise ValueError("it is no ONNX file that can be counted: it has no output")
    values = {value.name: Value(_bytes(value)) for value in (*graph.input, *graph.value_info, *graph.output) if _known(value)}
    shapes = {value.name: _shape(value) for value in (*graph.input, *graph.value_info, *graph.output) if _known(value)}
    scales = {name for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear") for name in node.input[1:]}
    for tensor in (*graph.initializer, *_constants(graph)):
        shapes[tensor.name] = tuple(tensor.dims)
        values[tensor.name] = _constant(tensor, tensor.name in scales)
    quantised = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for name in quantised & set(values):  # int32 biases, too
        if values[name].constant:
            values[name] = Value(values[name].bytes, constant=True, parameters=math.prod(shapes[name]))
    nodes, same = _folded(graph)
    return Graph(
        operations=tuple(_operation(node, shapes) for node in nodes),
        values=values,
        inputs=tuple(value.name for value in graph.input if value.name not in {t.name for t in graph.initializer}),
        outputs=tuple(value.name for value in graph.output),
        same=same,
    )


def ort_graph(model: bytes) -> Graph:
    """The graph of an ORT file, for one image: onnxruntime itself writes it as ONNX.

    Raises:
        ValueError: onnxruntime does not open it.
    """
    ort = load_onnxruntime()
    settings: Any = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.add_session_config_entry("session.save_model_format", "ONNX")
    with tempfile.TemporaryDirectory(prefix="samespace-costs-") as folder:
        target = Path(folder) / "model.onnx"
        settings.optimized_model_filepath = str(target)
        try:
            ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"onnxruntime {ort.__version__} cannot open it: {error}") from error
        return onnx_graph(target.read_bytes())


def _operation(node: Any, shapes: dict[str, tuple[int, ...]]) -> Operation:
    inputs = tuple(name for name in node.input if name)
    return Operation(node.op_type, inputs, tuple(name for name in node.output if name), _macs(node, shapes))


def _macs(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"):
        return 0
    right = node.input[3 if node.op_type.startswith("QLinear") else 1]
    if node.output[0] not in shapes or right not in shapes or node.input[0] not in shapes:
        raise ValueError(f"the graph does not say how large the tensors of its {node.op_type} {node.name!r} are")
    made, weight = math.prod(shapes[node.output[0]]), shapes[right]
    if "Conv" in node.op_type:  # (out, in / groups, height, width)
        return made * math.prod(weight[1:])
    if node.op_type == "Gemm":
        turned = any(item.name == "transB" and item.i for item in node.attribute)
        return made * weight[1 if turned else 0]
    return made * shapes[node.input[0]][-1]


def _folded(graph: Any) -> tuple[list[Any], dict[str, str]]:
    """The nodes that are operations of their own for a runtime, and the names that are other views of the same tensor."""
    readers = Counter(name for node in graph.node for name in node.input)
    made = {name for node in graph.node for name in node.output}
    results, stored = {value.name for value in graph.output}, {tensor.name for tensor in graph.initializer}
    nodes, same = [], {}
    for node in graph.node:
        source, target = node.input[0] if node.input else "", node.output[0]
        # Weights in half precision are widened once, when the file is opened.
        widened = node.op_type == "Cast" and source in stored
        if node.op_type in _VIEWS or node.op_type == "DequantizeLinear" or widened:
            same[target] = source
        elif node.op_type == "QuantizeLinear" and source in made - results and source not in same and readers[source] == 1:
            # What is quantised right after it was made is never written in float.
            same[source] = target
        elif node.op_type != "Constant":
            nodes.append(node)
    return nodes, same


def _constants(graph: Any) -> list[Any]:
    found = []
    for node in graph.node:
        if node.op_type == "Constant":
            for item in node.attribute:
                if item.name == "value":
                    tensor = type(item.t)()
                    tensor.CopyFrom(item.t)
                    tensor.name = node.output[0]
                    found.append(tensor)
    return found


def _constant(tensor: Any, scale: bool) -> Value:
    import onnx

    count = math.prod(tensor.dims)
    size = count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    learned = tensor.data_type in kinds and count > 1 and not scale
    return Value(size, constant=True, parameters=count if learned else 0)


def _known(value: Any) -> bool:
    kind = value.type.tensor_type
    return kind.elem_type != 0 and kind.HasField("shape") and all(dim.dim_value > 0 for dim in kind.shape.dim)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _bytes(value: Any) -> int:
    import onnx

    return math.prod(_shape(value)) * onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize
