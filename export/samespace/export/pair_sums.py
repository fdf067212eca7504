"""What an x86 CPU without VNNI computes of a QDQ graph, on any CPU: sums of two products in 16 bits, which saturate.

There onnxruntime multiplies uint8 activations by int8 weights with VPMADDUBSW: products are added in pairs, in the order of
(kernel row, kernel column, channel), and each pair's sum is clipped to [-32768, 32767]; pairs are added up in 32 bits.
int8 activations are moved to uint8 first. Depthwise convolutions and uint8 weights go through other kernels, which do not clip.
Only what onnxruntime fuses into an integer operator is concerned: a result that is quantised, and read by nothing else.

The graph is rewritten in plain float32 operators, which are exact here (sums stay below 2^24). Memory is a float for each pair:
half the multiplications of a layer, a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SATURATED", "Layer", "clipped_graph", "layers_that_may_clip"]

#: Suffix of the outputs of :func:`clipped_graph` that hold the share of pairs that were clipped, 0-1.
SATURATED = "/saturated"
_LOW, _HIGH = -32768, 32767


@dataclass(frozen=True, eq=False)
class Layer:
    """An integer layer.

    Attributes:
        node: Conv, Gemm or MatMul.
        quantised: name of its activations, still uint8 or int8; ``scale`` and ``zero`` are theirs.
        weight: int8 as ``(M, kernel rows, kernel columns, channels)``; a matrix has a kernel of 1 x 1.
        weight_scale: one, or one for each of the M outputs.
        signed: whether activations are int8.
    """

    node: Any
    quantised: str
    scale: float
    zero: int
    weight: npt.NDArray[np.int8]
    weight_scale: npt.NDArray[np.float32]
    signed: bool

    @property
    def pairs(self) -> npt.NDArray[np.float32]:
        """Weights as ``(M, k, 2)``, in the order in which products are paired; the last pair may end with a zero."""
        flat = self.weight.reshape(len(self.weight), -1).astype(np.float32)
        return np.pad(flat, ((0, 0), (0, flat.shape[1] % 2))).reshape(len(flat), -1, 2)

    @property
    def may_clip(self) -> bool:
        """Whether any activations could take a pair out of 16 bits."""
        high = np.maximum(self.pairs, 0).sum(2).max() * 255
        low = np.minimum(self.pairs, 0).sum(2).min() * 255
        return bool(high > _HIGH or low < _LOW)


def layers_that_may_clip(model: Any) -> list[Layer]:
    """Integer layers of a QDQ ModelProto whose weights are large enough for 16 bits not to hold every pair."""
    return [layer for layer in _layers(model) if layer.may_clip]


def clipped_graph(model: Any, layers: list[Layer]) -> Any:
    """A new ModelProto in which these layers clip.

    It has the outputs of ``model``, and for each layer one more, its node's name with :data:`SATURATED`.
    """
    import onnx

    clipped = onnx.ModelProto()
    clipped.CopyFrom(model)
    graph = clipped.graph
    rewritten = {layer.node.name: layer for layer in layers}
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.name not in rewritten:
            nodes.append(node)
            continue
        writer = _Writer(node.name, graph, nodes)
        _write(rewritten[node.name], writer)
        graph.output.append(onnx.helper.make_tensor_value_info(node.name + SATURATED, onnx.TensorProto.FLOAT, []))
    # Those that are not ours belong to the other model: they outlive the list.
    del graph.node[:]
    graph.node.extend(nodes)
    return clipped


def _layers(model: Any) -> Iterator[Layer]:
    from onnx import numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        data, weight = (made_by.get(name) for name in node.input[:2])
        quantised = [reader.op_type for reader in readers.get(node.output[0], [])] == ["QuantizeLinear"]
        if not quantised or data is None or weight is None:
            continue
        if data.op_type != "DequantizeLinear" or weight.op_type != "DequantizeLinear":
            continue
        if weight.input[0] not in constants or any(name not in constants for name in (*data.input[1:], *weight.input[1:])):
            continue
        kernel = _kernel(node, constants[weight.input[0]])
        zero = constants[data.input[2]] if len(data.input) > 2 else np.uint8(0)
        if kernel is None or kernel.dtype != np.int8:
            continue
        yield Layer(
            node=node,
            quantised=data.input[0],
            scale=float(constants[data.input[1]]),
            zero=int(zero),
            weight=kernel,
            weight_scale=np.atleast_1d(constants[weight.input[1]]).astype(np.float32),
            signed=zero.dtype == np.int8,
        )


def _kernel(node: Any, weight: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """``(M, rows, columns, channels)``; None for what is not one product over all channels."""
    if node.op_type == "Conv":
        ungrouped = _attribute(node, "group", 1) == 1 and weight.ndim == 4
        return weight.transpose(0, 2, 3, 1) if ungrouped else None
    if weight.ndim != 2 or _attribute(node, "transA", 0) or _attribute(node, "alpha", 1.0) != 1.0:
        return None
    if _attribute(node, "beta", 1.0) != 1.0:
        return None
    return (weight if _attribute(node, "transB", 0) else weight.T)[:, None, None, :]


def _attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


class _Writer:
    """Appends operators and constants, with names of their own, to a graph."""

    def __init__(self, base: str, graph: Any, nodes: list[Any]) -> None:
        self._base, self._graph, self._nodes, self._count = base, graph, nodes, 0

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        name = self._name()
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        import onnx

        output = output or self._name()
        self._nodes.append(onnx.helper.make_node(operator, inputs, [output], name=f"{self._base}/{output}", **attributes))
        return output

    def _name(self) -> str:
        self._count += 1
        return f"{self._base}/pairs_{self._count}"


def _write(layer: Layer, writer: _Writer) -> None:
    """Replace a layer: its activations as ``(n, k, 2, 1, places)``, times pairs, clipped, summed, scaled."""
    import onnx

    node, pairs = layer.node, layer.pairs
    outputs, count = pairs.shape[:2]
    moved = 128 if layer.signed else 0
    data = writer.add("Cast", [layer.quantised], to=onnx.TensorProto.FLOAT)
    data = writer.add("Add", [data, writer.constant(moved)])
    shape, columns = _columns(layer, data, layer.zero + moved, writer)
    if layer.weight[0].size % 2:
        columns = writer.add("Pad", [columns, writer.constant([0, 0, 0, 0, 1, 0], np.int64)])
    columns = writer.add("Reshape", [columns, writer.constant([0, count, 2, 1, -1], np.int64)])
    products = writer.add("Mul", [columns, writer.constant(pairs.transpose(1, 2, 0)[None, :, :, :, None])])
    sums = writer.add("ReduceSum", [products, writer.constant([2], np.int64)], keepdims=0)
    kept = writer.add("Clip", [sums, writer.constant(_LOW), writer.constant(_HIGH)])
    changed = writer.add("Not", [writer.add("Equal", [sums, kept])])
    writer.add("ReduceMean", [writer.add("Cast", [changed], to=onnx.TensorProto.FLOAT)], node.name + SATURATED, keepdims=0)
    total = writer.add("ReduceSum", [kept, writer.constant([1], np.int64)], keepdims=0)
    # The zero point's part is exact: it is added in 32 bits.
    offset = (layer.zero + moved) * pairs.sum((1, 2))
    total = writer.add("Sub", [total, writer.constant(offset.reshape(1, outputs, 1))])
    total = writer.add("Mul", [total, writer.constant((layer.weight_scale * layer.scale).reshape(1, -1, 1))])
    result = writer.add("Reshape", [total, shape])
    if len(node.input) > 2:
        bias = node.input[2]
        if node.op_type == "Conv":
            bias = writer.add("Reshape", [bias, writer.constant([1, outputs, 1, 1], np.int64)])
        writer.add("Add", [result, bias], node.output[0])
    else:
        writer.add("Identity", [result], node.output[0])


def _columns(layer: Layer, data: str, fill: float, writer: _Writer) -> tuple[str, str]:
    """The shape of the layer's result, and for each place of it the activations that it reads: ``(n, K, places)``."""
    node = layer.node
    outputs, rows, columns, _ = layer.weight.shape
    if node.op_type != "Conv":
        return writer.constant([-1, outputs], np.int64), writer.add("Unsqueeze", [data, writer.constant([2], np.int64)])
    top, left, bottom, right = _attribute(node, "pads", [0, 0, 0, 0])
    step, reach = _attribute(node, "strides", [1, 1]), _attribute(node, "dilations", [1, 1])
    padding = writer.constant([0, 0, top, left, 0, 0, bottom, right], np.int64)
    data = writer.add("Pad", [data, padding, writer.constant(fill)])
    parts = []
    for row in range(rows):
        for column in range(columns):
            starts = [row * reach[0], column * reach[1]]
            # As far from the end as the kernel's last row or column would be; beyond any edge for the last one itself.
            ends = [
                -((edge - 1 - place) * far) or np.iinfo(np.int64).max
                for edge, place, far in zip((rows, columns), (row, column), reach, strict=True)
            ]
            arguments = [writer.constant(value, np.int64) for value in (starts, ends, [2, 3], step)]
            parts.append(writer.add("Slice", [data, *arguments]))
    joined = writer.add("Concat", parts, axis=1) if len(parts) > 1 else parts[0]
    sizes = writer.add("Shape", [joined])
    ends = [writer.add("Slice", [sizes, *(writer.constant([at], np.int64) for at in span)]) for span in ((0, 1), (2, 4))]
    shape = writer.add("Concat", [ends[0], writer.constant([outputs], np.int64), ends[1]], axis=0)
    flat = writer.constant([0, rows * columns * layer.weight.shape[3], -1], np.int64)
    return shape, writer.add("Reshape", [joined, flat])
