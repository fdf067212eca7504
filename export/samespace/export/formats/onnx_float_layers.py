"""Layers of an ONNX graph that static int8 leaves in float, and what it takes for onnxruntime to leave them so too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from samespace.export.formats.onnx_graph import is_outside, layers_of
from samespace.sdk.errors import ConfigError

__all__ = ["keep_weights_in_float", "nodes_in_float"]

#: Element by element after a layer: where the layer stays in float, they do.
_ACTIVATIONS = frozenset({"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid"})


def nodes_in_float(model: Any, float_layers: tuple[str, ...]) -> list[str]:
    """Names of the nodes that stay in float: around the network, after its last layer, chosen layers with their activations.

    Raises:
        ConfigError: an unknown layer; lists those there are.
    """
    layers = layers_of(model)
    for name in float_layers:
        if name not in layers:
            raise ConfigError(f"float_layers: the ONNX graph has no layer {name!r}; there are: {', '.join(layers)}")
    nodes = list(model.graph.node)
    last = max((index for index, node in enumerate(nodes) if node.name in layers), default=-1)
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    excluded = {node.name for index, node in enumerate(nodes) if is_outside(node) or index > last}
    for node in nodes:
        if node.name in float_layers:
            excluded |= {node.name, *_activations(node, readers)}
    return [node.name for node in nodes if node.name in excluded]


def keep_weights_in_float(model: Any, float_layers: tuple[str, ...]) -> None:
    """Dequantise the data of float layers with a scale for each channel, all of them equal; in place, in a QDQ graph.

    It is the same arithmetic, but onnxruntime's WeightBiasQuantization quantises a float weight whose data is dequantised with
    a single scale as soon as it loads the model: with one scale for all channels, and unasked.
    """
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    nodes: list[Any] = []
    for node in graph.node:
        source = made_by.get(node.input[0]) if node.name in float_layers else None
        if source is not None and source.op_type == "DequantizeLinear":
            channels, names = _channels(node, constants[node.input[1]].shape), []
            for name, part in zip(source.input[1:], ("scale", "zero_point"), strict=False):
                names.append(f"{node.name}/{part}")
                graph.initializer.append(numpy_helper.from_array(np.repeat(constants[name], channels), names[-1]))
            node.input[0], axis = f"{node.name}/dequantised", -1 if node.op_type == "MatMul" else 1
            nodes.append(
                onnx.helper.make_node(
                    "DequantizeLinear",
                    [source.input[0], *names],
                    [node.input[0]],
                    name=f"{node.name}/DequantizeLinear",
                    axis=axis,
                )
            )
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [node for node in nodes if node.op_type != "DequantizeLinear" or node.output[0] in used]
    # They are copied before their list is emptied, which frees them.
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)


def _channels(node: Any, weight: tuple[int, ...]) -> int:
    """Of the layer's data."""
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        return weight[1] * numbers.get("group", 1)
    return weight[1] if numbers.get("transB") else weight[0]


def _activations(node: Any, readers: dict[str, list[Any]]) -> Iterator[str]:
    """Names of the activations that follow a node, as long as nobody else reads what is between."""
    while len(following := readers.get(node.output[0], [])) == 1 and following[0].op_type in _ACTIVATIONS:
        node = following[0]
        yield node.name
