"""Core ML packages as graphs of costs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from samespace.edge.devices.costs.graph import Graph, Operation, Value
from samespace.sdk.runtimes.mil.program import Operation as MilOperation
from samespace.sdk.runtimes.mil.program import Program, TensorType, read_package

__all__ = ["coreml_graph"]

_VIEWS = frozenset({"reshape", "squeeze", "expand_dims", "identity"})
_BYTES = {"fp32": 4, "fp16": 2, "int32": 4, "int8": 1, "uint8": 1, "bool": 1, "int16": 2, "uint16": 2}
#: Bits of an index of a palette.
_INDEX_BITS = (1, 2, 3, 4, 6, 8)


def coreml_graph(files: Mapping[str, bytes]) -> Graph:
    """The graph of an ``.mlpackage``, for one image; compressed weights count as many bytes as they take compressed.

    Raises:
        ValueError: no package with an ML Program.
    """
    program = read_package(files)
    types = dict(program.inputs) | {name: kind for one in program.operations for name, kind in one.outputs.items()}
    values = {name: Value(_bytes(kind)) for name, kind in types.items() if kind.dtype in _BYTES}
    for name, constant in program.constants.items():
        if isinstance(constant, np.ndarray):
            learned = constant.dtype.kind == "f" and constant.size > 1
            values[name] = Value(constant.nbytes, constant=True, parameters=constant.size if learned else 0)
    operations, same = [], {}
    for one in program.operations:
        outputs = tuple(one.outputs)
        if one.kind.startswith("constexpr_"):
            values[outputs[0]] = _compressed(one, program)
        elif one.kind in _VIEWS:
            same[outputs[0]] = one.inputs["x"][0]
        else:
            names = tuple(name for parameter in one.inputs.values() for name in parameter)
            operations.append(
                Operation(one.kind, tuple(name for name in names if name in values), outputs, _macs(one, types, program))
            )
    return Graph(tuple(operations), values, tuple(program.inputs), program.outputs, same)


def _macs(one: MilOperation, types: Mapping[str, TensorType], program: Program) -> int:
    made = math.prod(_shape(next(iter(one.outputs.values()))))
    if one.kind == "conv":
        return made * math.prod(_shape_of(one.inputs["weight"][0], types, program)[1:])
    if one.kind == "linear":
        return made * _shape_of(one.inputs["weight"][0], types, program)[-1]
    if one.kind == "matmul":
        left = _shape_of(one.inputs["x"][0], types, program)
        turned = "transpose_x" in one.inputs and bool(program.constants.get(one.inputs["transpose_x"][0], False))
        return made * left[-2 if turned else -1]
    return 0


def _compressed(one: MilOperation, program: Program) -> Value:
    count = math.prod(_shape(next(iter(one.outputs.values()))))
    stored = [program.constants[name] for names in one.inputs.values() for name in names if name in program.constants]
    arrays = [array for array in stored if isinstance(array, np.ndarray)]
    size = sum(array.nbytes for array in arrays)
    if "indices" in one.inputs:
        indices = program.constants[one.inputs["indices"][0]]
        assert isinstance(indices, np.ndarray)
        needed = max(1, int(indices.max()).bit_length())
        bits = next(bits for bits in _INDEX_BITS if bits >= needed)
        size += math.ceil(indices.size * bits / 8) - indices.nbytes
    return Value(size, constant=True, parameters=count)


def _shape_of(name: str, types: Mapping[str, TensorType], program: Program) -> tuple[int, ...]:
    constant = program.constants.get(name)
    return tuple(constant.shape) if isinstance(constant, np.ndarray) else _shape(types[name])


def _shape(kind: TensorType) -> tuple[int, ...]:
    return tuple(1 if length is None else length for length in kind.shape)


def _bytes(kind: TensorType) -> int:
    return math.prod(_shape(kind)) * _BYTES[kind.dtype]
