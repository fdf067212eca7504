"""A graph of any format as far as costs go: operations in the order in which they run, and the tensors between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Graph", "GraphCosts", "Operation", "Value"]


@dataclass(frozen=True)
class Value:
    """A tensor.

    Attributes:
        bytes: that it takes, for one image.
        constant: whether it is in the file.
        parameters: how many weights, biases or the like it holds; 0 for activations, shapes and scales of quantisation.
    """

    bytes: int
    constant: bool = False
    parameters: int = 0


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        kind: the format's name of it.
        inputs: names of values, constants included.
        outputs: names of values.
        macs: multiply-accumulates of convolutions and matrix products; 0 for all else.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int = 0


@dataclass(frozen=True)
class GraphCosts:
    """What the graph says that one image costs.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products; norms, activations and sums cost next to nothing.
        parameters: weights, biases and other floating-point or quantised constants.
        bytes_moved: what all operations read and write, each by itself; a runtime that fuses operations moves less.
        peak_activations: most bytes of activations that exist at once, in the file's order of operations.
    """

    macs: int
    parameters: int
    bytes_moved: int
    peak_activations: int


@dataclass(frozen=True)
class Graph:
    """Operations in order.

    Attributes:
        operations: in order of execution.
        values: name -> tensor, of all names that operations use.
        inputs: names of what is given from outside.
        outputs: names of the results.
        same: name -> name of the tensor that it is only another view of: a reshape moves nothing, and of a quantised operation
            it is the quantised tensor that is read and written.
    """

    operations: tuple[Operation, ...]
    values: Mapping[str, Value]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    same: Mapping[str, str] = field(default_factory=dict)

    def costs(self) -> GraphCosts:
        """Count.

        Raises:
            ValueError: an operation uses a tensor of which the graph does not say how large it is.
        """
        constants: set[str] = set()
        moved = 0
        for operation in self.operations:
            read, written = self._real(operation.inputs), self._real(operation.outputs)
            constants |= {name for name in read if self._value(name).constant}
            moved += sum(self._value(name).bytes for name in (*read, *written))
        return GraphCosts(
            macs=sum(operation.macs for operation in self.operations),
            parameters=sum(self._value(name).parameters for name in constants),
            bytes_moved=moved,
            peak_activations=self._peak(),
        )

    def _peak(self) -> int:
        """Liveness: a tensor exists from the operation that writes it to the last that reads it."""
        last = {name: place for place, operation in enumerate(self.operations) for name in self._real(operation.inputs)}
        last |= dict.fromkeys(self._real(self.outputs), len(self.operations))
        alive = {name for name in self._real(self.inputs) if name in last}
        peak = self._bytes(alive)
        for place, operation in enumerate(self.operations):
            alive |= {name for name in self._real(operation.outputs) if name in last}
            peak = max(peak, self._bytes(alive | set(self._real(operation.outputs))))
            alive = {name for name in alive if last[name] > place}
        return peak

    def _bytes(self, names: set[str]) -> int:
        return sum(self._value(name).bytes for name in names if not self._value(name).constant)

    def _real(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The tensors behind names, each once."""
        found = []
        for name in names:
            while name in self.same:
                name = self.same[name]
            found.append(name)
        return tuple(dict.fromkeys(found))

    def _value(self, name: str) -> Value:
        if name not in self.values:
            raise ValueError(f"the graph does not say how large {name!r} is")
        return self.values[name]
