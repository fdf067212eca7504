"""An ONNX graph under construction, and the parameters of the MIL operation that is being translated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper, numpy_helper

from samespace.sdk.runtimes.mil.program import Constant, Operation, TensorType

__all__ = ["Call", "Graph", "Translator", "UnsupportedError", "onnx_type"]


class UnsupportedError(ValueError):
    """An operator, or a use of it, that the evaluator does not know."""


class Graph:
    """Nodes and constants of an ONNX graph, and what is known of the MIL values that have been translated.

    All floats are float32 in the graph and all integers int32; where the MIL dtype is fp16, ``translate`` rounds to it.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        #: MIL name -> name in the ONNX graph.
        self.names: dict[str, str] = {}
        self.types: dict[str, TensorType] = {}
        self.constants: dict[str, Constant] = {}
        self._count = 0

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or the list of names where there are several."""
        names = [self._fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names if outputs > 1 else names[0]

    def array(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Add a constant; returns its name."""
        name = self._fresh()
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def integers(self, value: npt.ArrayLike) -> str:
        """Add a constant of int64, as ONNX takes axes, shapes and pads."""
        return self.array(value, np.int64)

    def name_of(self, value: str) -> str:
        """Name in the ONNX graph of a MIL value; a constant is added at its first use."""
        if value not in self.names:
            constant = self.constants.get(value)
            if not isinstance(constant, np.ndarray):
                raise UnsupportedError(f"value {value!r} is used before it is computed")
            kind = np.float32 if constant.dtype.kind == "f" else np.bool_ if constant.dtype.kind == "b" else np.int32
            self.names[value] = self.array(constant, kind)
        return self.names[value]

    def _fresh(self) -> str:
        self._count += 1
        return f"t{self._count}"


class Call:
    """One MIL operation seen by its translator: its parameters as tensors or as constants, and the graph to add nodes to."""

    def __init__(self, graph: Graph, operation: Operation) -> None:
        self.graph = graph
        self.operation = operation

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        return self.graph.add(operator, *inputs, outputs=outputs, **attributes)

    def tensor(self, parameter: str = "x") -> str:
        """The parameter's name in the ONNX graph."""
        return self.graph.name_of(self._value(parameter))

    def tensors(self, parameter: str) -> list[str]:
        """The names of a parameter that is a list."""
        return [self.graph.name_of(value) for value in self.operation.inputs.get(parameter, ())]

    def optional(self, parameter: str) -> str:
        """Like :meth:`tensor`; ``""``, ONNX's "not given", when the parameter is absent."""
        return self.tensor(parameter) if self.has(parameter) else ""

    def has(self, parameter: str) -> bool:
        return bool(self.operation.inputs.get(parameter))

    def constant(self, parameter: str, default: Any = None) -> Any:
        """The parameter's constant value (array or string), or the default when it is absent."""
        if not self.has(parameter):
            return default
        value = self.graph.constants.get(self._value(parameter))
        if value is None:
            raise UnsupportedError(f"{self}: {parameter} is computed at run time; only a constant is supported")
        return value

    def is_constant(self, parameter: str) -> bool:
        return self.has(parameter) and self._value(parameter) in self.graph.constants

    def number(self, parameter: str, default: float) -> float:
        return float(np.asarray(self.constant(parameter, default)))

    def flag(self, parameter: str, default: bool = False) -> bool:
        return bool(np.asarray(self.constant(parameter, default)))

    def integer(self, parameter: str, default: int) -> int:
        return int(np.asarray(self.constant(parameter, default)))

    def integer_list(self, parameter: str, default: list[int] | None = None) -> list[int]:
        value = self.constant(parameter)
        if value is None:
            if default is None:
                raise UnsupportedError(f"{self}: {parameter} is missing")
            return default
        return [int(item) for item in np.atleast_1d(value)]

    def rank(self, parameter: str = "x") -> int:
        """Number of dimensions of the parameter."""
        value = self._value(parameter)
        constant = self.graph.constants.get(value)
        return np.ndim(constant) if constant is not None else len(self.graph.types[value].shape)

    def _value(self, parameter: str) -> str:
        values = self.operation.inputs.get(parameter, ())
        if len(values) != 1:
            raise UnsupportedError(f"{self}: parameter {parameter!r} has {len(values)} values, expected 1")
        return values[0]

    def __str__(self) -> str:
        return f"operator {self.operation.kind!r} (output {next(iter(self.operation.outputs), '?')!r})"


#: Adds an operation to the graph; returns the name of its output, or of its outputs.
Translator = Callable[[Call], Any]


def onnx_type(dtype: str) -> int:
    """The ONNX element type that carries a MIL dtype in the graph.

    Raises:
        UnsupportedError: strings and types that the graph cannot carry.
    """
    if dtype in ("fp16", "fp32"):
        return TensorProto.FLOAT
    if dtype == "bool":
        return TensorProto.BOOL
    if dtype.startswith(("int", "uint")):
        return TensorProto.INT32
    raise UnsupportedError(f"values of type {dtype} are not supported")
