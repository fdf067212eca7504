"""What a TFLite graph holds: its operators, and the layers among them, called after the torch modules that they came from.

litert-torch names tensors after the modules they were traced in, ``...DeviceGraph/...StagedNet_model/...ConvNorm_stem/
torch.nn.modules.conv.Conv2d_0;1``. A layer is an operator with a weight, and its name the path of attributes below the network,
``stem.0``. (Containers that are only indexed, never called, do not show in a path.)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samespace.sdk.errors import ExportError

__all__ = ["Operator", "layers_of", "outside", "read_operators"]

#: Operators that can have a weight -> which of their inputs it is.
_WEIGHT = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1, "BATCH_MATMUL": 1}
#: Modules with weights, at the end of a path.
_LAYER = re.compile(r"/torch\.nn\.modules\.(conv|linear)\.[^/]*$")
#: What the scaling of the pixels consists of.
_SCALING = frozenset({"CAST", "MUL", "ADD", "SUB"})


@dataclass(frozen=True)
class Operator:
    """One operator of a graph.

    Attributes:
        kind: as the format calls it, e.g. ``CONV_2D``.
        outputs: names of the tensors that it writes.
        weight: name of its weight's tensor; empty without one.
    """

    kind: str
    outputs: tuple[str, ...]
    weight: str = ""

    @property
    def scope(self) -> str:
        """What ai-edge-quantizer knows it by."""
        return "".join(f"{name};" for name in self.outputs)


def read_operators(model: bytes) -> tuple[Operator, ...]:
    """The operators of a ``.tflite`` file's main graph, in the order they run."""
    from ai_edge_litert.tools import flatbuffer_utils

    content: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    kinds = _kinds()
    graph = content.subgraphs[0]
    operators = []
    for item in graph.operators:
        kind = kinds[content.operatorCodes[item.opcodeIndex].builtinCode]
        outputs = tuple(graph.tensors[index].name.decode() for index in item.outputs)
        weight = ""
        if kind in _WEIGHT and len(item.inputs) > _WEIGHT[kind]:
            tensor = graph.tensors[item.inputs[_WEIGHT[kind]]]
            weight = tensor.name.decode() if content.buffers[tensor.buffer].data is not None else ""
        operators.append(Operator(kind, outputs, weight))
    return tuple(operators)


def layers_of(operators: Sequence[Operator]) -> dict[str, Operator]:
    """The operators with weights by name, in the order they run."""
    named: dict[str, Operator] = {}
    for operator in operators:
        if operator.weight:
            base = name = _module_path(operator.weight)
            count = 1
            while name in named:
                count += 1
                name = f"{base}_{count}"
            named[name] = operator
    return named


def outside(operators: Sequence[Operator]) -> tuple[Operator, ...]:
    """What the device graph puts around the network, and no precision touches.

    These are the scaling of the pixels, and all that follows the last layer: a mean over positions, and the L2 norm.

    Raises:
        ExportError: the graph does not end with a norm that was traced from a module called L2Norm.
    """
    before = next((place for place, operator in enumerate(operators) if operator.kind not in _SCALING), len(operators))
    last = max((place for place, operator in enumerate(operators) if operator.weight), default=-1)
    behind = tuple(operators[max(before, last + 1) :])
    if not any("L2Norm" in operator.scope for operator in behind):
        raise ExportError(
            "the TFLite graph does not end with an L2Norm, which must stay in float: export a DeviceGraph, which ends with one"
        )
    return (*operators[:before], *behind)


def _module_path(tensor: str) -> str:
    # What was folded into a layer (a batch norm, an activation) is named with it: "A;;B;1" came from A and B.
    merged = [part.split(";")[0] for part in tensor.split(";;")]
    own = next((part for part in reversed(merged) if _LAYER.search(part)), merged[-1])
    segments = own.split("/")
    # "torch.nn.modules.conv.Conv2d_0": the class with its module, an underscore, and the attribute.
    attributes = [re.sub(r"^(?:\w+\.)*[A-Za-z][A-Za-z0-9]*_(?=\w)", "", segment) for segment in segments[1:]]
    path = ".".join(attributes[1:] if attributes[:1] == ["model"] else attributes)
    return path or own


@functools.cache
def _kinds() -> dict[int, str]:
    from ai_edge_litert.tools import flatbuffer_utils

    known = vars(flatbuffer_utils.schema_fb.BuiltinOperator)
    return {value: name for name, value in known.items() if isinstance(value, int)}
