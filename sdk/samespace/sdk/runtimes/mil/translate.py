"""From an ML Program to an ONNX graph that means the same.

Arithmetic: every operation computes in float32; where its declared dtype is fp16, the result is rounded to fp16 and widened
again (a pair of casts, which onnxruntime keeps because the first loses precision), overflow to infinity included. So the
storage rounding of a device is emulated, not the order of its sums nor fp16 accumulators.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from samespace.sdk.runtimes.mil import elementwise, layers, shapes
from samespace.sdk.runtimes.mil.decompress import DECOMPRESSORS, decompress
from samespace.sdk.runtimes.mil.graph import Call, Graph, Translator, UnsupportedError, onnx_type
from samespace.sdk.runtimes.mil.program import Operation, Program, TensorType

__all__ = ["OPERATORS", "translate"]

#: Every operator that the evaluator knows, but for the decompressors of constants.
OPERATORS: dict[str, Translator] = {**elementwise.OPERATORS, **layers.OPERATORS, **shapes.OPERATORS}

#: Their results are values that were there before: nothing to round when all that goes in is fp16 already.
_SELECTING = {
    *shapes.OPERATORS,
    "abs",
    "identity",
    "max_pool",
    "maximum",
    "minimum",
    "reduce_max",
    "reduce_min",
    "relu",
    "select",
} - {"pad"}

_OPSET, _IR_VERSION = 20, 10


def translate(program: Program) -> bytes:
    """Translate a program to a serialised ONNX model with the same input and output names.

    Raises:
        UnsupportedError: the program uses an operator, or a use of one, that is not known; it is named.
    """
    graph = Graph()
    graph.constants.update(program.constants)
    graph.types.update(program.inputs)
    for name, kind in program.inputs.items():
        graph.names[name] = _rounded(graph, name) if kind.dtype == "fp16" else name
    for operation in program.operations:
        if operation.kind in DECOMPRESSORS:
            _fold(graph, operation)
        else:
            _add(graph, operation)
    for name in program.outputs:
        graph.nodes.append(helper.make_node("Identity", [graph.name_of(name)], [name]))
    inputs = [
        helper.make_tensor_value_info(name, onnx_type(kind.dtype), list(kind.shape)) for name, kind in program.inputs.items()
    ]
    outputs = [helper.make_tensor_value_info(name, _output_type(graph, name), None) for name in program.outputs]
    body = helper.make_graph(graph.nodes, "ml_program", inputs, outputs, graph.initializers)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return model.SerializeToString()


def _add(graph: Graph, operation: Operation) -> None:
    call = Call(graph, operation)
    translator = OPERATORS.get(operation.kind)
    if translator is None:
        raise UnsupportedError(f"{call} is not known to the Core ML evaluator")
    results = translator(call)
    for (name, declared), result in zip(
        operation.outputs.items(), [results] if isinstance(results, str) else results, strict=True
    ):
        graph.types[name] = declared
        graph.names[name] = _rounded(graph, result) if declared.dtype == "fp16" and _rounds(graph, operation) else result


def _rounded(graph: Graph, value: str) -> str:
    return graph.add("Cast", graph.add("Cast", value, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)


def _rounds(graph: Graph, operation: Operation) -> bool:
    """Whether the result may hold values that fp16 cannot."""
    if operation.kind not in _SELECTING:
        return True
    return any(_dtype(graph, value) == "fp32" for values in operation.inputs.values() for value in values)


def _dtype(graph: Graph, value: str) -> str:
    constant = graph.constants.get(value)
    if constant is None:
        return graph.types[value].dtype
    return "fp32" if isinstance(constant, np.ndarray) and constant.dtype == np.float32 else "other"


def _fold(graph: Graph, operation: Operation) -> None:
    """Decompress a constant now."""
    values = {
        parameter: graph.constants[names[0]] for parameter, names in operation.inputs.items() if names[0] in graph.constants
    }
    try:
        results = decompress(operation.kind, values)
    except (KeyError, ValueError, IndexError, ArithmeticError) as error:
        raise UnsupportedError(f"{Call(graph, operation)} cannot be decompressed: {error}") from error
    for (name, declared), result in zip(operation.outputs.items(), results, strict=True):
        if result.shape != declared.shape:
            raise UnsupportedError(
                f"{Call(graph, operation)} gives the shape {result.shape}, the program declares {declared.shape}"
            )
        graph.constants[name] = result
        graph.types[name] = declared


def _output_type(graph: Graph, name: str) -> int:
    return onnx_type(graph.types.get(name, TensorType("fp32", ())).dtype)
