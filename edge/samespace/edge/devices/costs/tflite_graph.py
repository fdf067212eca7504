"""TFLite files as graphs of costs."""

from __future__ import annotations

import math
from typing import Any

from samespace.edge.devices.costs.graph import Graph, Operation, Value

__all__ = ["tflite_graph"]

_VIEWS = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
#: TFLite's names of element types -> bytes of an element.
_BYTES = {"FLOAT32": 4, "FLOAT16": 2, "INT32": 4, "UINT8": 1, "INT64": 8, "BOOL": 1, "INT16": 2, "INT8": 1, "INT4": 0.5}
_FLOATS = ("FLOAT32", "FLOAT16")
#: Operators whose second input is a matrix of weights, and the third a bias.
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")


def tflite_graph(model: bytes) -> Graph:
    """The graph of a TFLite file, for one image.

    Raises:
        ValueError: no TFLite file, or one with more than one graph.
    """
    from ai_edge_litert import schema_py_generated as schema

    if model[4:8] != b"TFL3":
        raise ValueError("it is no TFLite file")
    try:
        tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
        graphs: Any = tree.subgraphs
        (graph,) = graphs
        return _graph(schema, tree, graph)
    except Exception as error:  # whatever reading damaged offsets leads to
        raise ValueError(f"it is no TFLite file that can be counted: {error}") from error


def _graph(schema: Any, tree: Any, graph: Any) -> Graph:
    kinds = _names(schema.BuiltinOperator)
    codes = [kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM") for code in tree.operatorCodes]
    types = _names(schema.TensorType)
    shapes = [tuple(tensor.shape) if tensor.shape is not None else () for tensor in graph.tensors]
    values, same = {}, {}
    stored = [_stored(tree.buffers[tensor.buffer]) for tensor in graph.tensors]
    biases = {op.inputs[2] for op in graph.operators if codes[op.opcodeIndex] in _LAYERS and len(op.inputs) > 2}
    for place, tensor in enumerate(graph.tensors):
        kind = types[tensor.type]
        count = math.prod(shapes[place])
        learned = stored[place] and count > 1 and (kind in (*_FLOATS, "INT8", "UINT8", "INT4") or place in biases)
        size = math.ceil(count * _BYTES[kind])
        values[str(place)] = Value(size, constant=stored[place], parameters=count if learned else 0)
    operations = []
    for op in graph.operators:
        kind = codes[op.opcodeIndex]
        inputs = tuple(place for place in op.inputs if place >= 0)
        if kind in _VIEWS or (kind == "DEQUANTIZE" and stored[inputs[0]]):
            # Weights in half precision are widened once, when the file is opened.
            same[str(op.outputs[0])] = str(inputs[0])
            continue
        macs = _macs(kind, shapes[op.outputs[0]], [shapes[place] for place in inputs])
        operations.append(Operation(kind, tuple(map(str, inputs)), tuple(map(str, op.outputs)), macs))
    return Graph(tuple(operations), values, tuple(map(str, graph.inputs)), tuple(map(str, graph.outputs)), same)


def _macs(kind: str, made: tuple[int, ...], inputs: list[tuple[int, ...]]) -> int:
    if kind == "CONV_2D":  # (out, height, width, in)
        return math.prod(made) * math.prod(inputs[1][1:])
    if kind == "DEPTHWISE_CONV_2D":  # (1, height, width, out)
        return math.prod(made) * math.prod(inputs[1][1:3])
    if kind == "FULLY_CONNECTED":  # (out, in)
        return math.prod(made) * inputs[1][-1]
    if kind == "BATCH_MATMUL":
        return math.prod(made) * inputs[0][-1]
    return 0


def _stored(buffer: Any) -> bool:
    return buffer.offset > 1 or (buffer.data is not None and len(buffer.data) > 0)


def _names(kind: Any) -> dict[int, str]:
    return {number: name for name, number in vars(kind).items() if isinstance(number, int)}
