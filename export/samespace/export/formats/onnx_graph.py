"""Names of an exported ONNX graph: nodes are called after the torch modules they came from, and machines are forgotten.

A node with weights has the path of its module below the network (``body.0.0.layers.1.0``); it is what
``ExportOptions.float_layers`` names. Another node has its module's path and its operator (``body.0.0/Add``). What the device
graph puts around the network is below ``/image/`` (scaling of the pixels) and ``/norm/`` (the L2 norm), which no precision
touches.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

__all__ = ["IMAGE", "NORM", "WEIGHTED", "is_outside", "layers_of", "name_nodes", "strip"]

#: Beginning of the names of nodes before and after the network. No torch module's path begins with a slash.
IMAGE, NORM = "/image/", "/norm/"
#: Operators whose second input is a weight.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes(model: Any) -> None:
    """Name the nodes of a ModelProto from torch's exporter, in place; to be called before :func:`strip`."""
    weights = {tensor.name for tensor in model.graph.initializer}
    taken: set[str] = set()
    for node in model.graph.node:
        weight = node.input[1] if node.op_type in WEIGHTED and len(node.input) > 1 else ""
        scopes = _scopes(node)
        if weight in weights and weight.startswith("model.") and weight.endswith(".weight"):
            name = weight[len("model.") : -len(".weight")]
        else:
            name = f"{_place(scopes)}{node.op_type}"
        base, count = name, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name


def strip(model: Any) -> None:
    """Remove what the exporter notes of where the code was: paths of the machine, and a fifth of the file."""
    graph = model.graph
    del model.metadata_props[:]
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def is_outside(node: Any) -> bool:
    """Whether the node scales the pixels or belongs to the L2 norm."""
    return node.name.startswith((IMAGE, NORM))


def layers_of(model: Any) -> tuple[str, ...]:
    """Names of the nodes with weights, in the order of the graph."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED and not is_outside(node) and any(name in weights for name in node.input[1:2])
    )


def _scopes(node: Any) -> list[str]:
    """Paths of the modules that the node is inside of, outermost first."""
    text = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "[]")
    # The last entry is the operator itself.
    return [scope for scope in _strings(ast.literal_eval(text)) if scope][:-1]


def _strings(value: Any) -> Iterable[str]:
    return (entry for entry in value if isinstance(entry, str)) if isinstance(value, list) else ()


def _place(scopes: list[str]) -> str:
    if not scopes:
        return IMAGE
    path = scopes[-1]
    if path == "norm":
        return NORM
    path = path.removeprefix("model").removeprefix(".")
    return f"{path}/" if path else ""
