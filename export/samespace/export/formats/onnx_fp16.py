"""ONNX in fp16: the network's weights and results, but neither the scaling of the pixels nor the L2 norm.

The converters at hand cast the results of excluded nodes to fp16 and back, so that a sum of squares in the norm would still
end at 65504. Here everything between ``/image/`` and ``/norm/`` is fp16 and everything outside float32, with one cast at each
border.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from samespace.export.formats.onnx_graph import is_outside
from samespace.sdk.errors import ExportError

__all__ = ["to_fp16"]

#: Inputs that their operators want in float32 whatever the data is.
_FLOAT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}


def to_fp16(model: Any) -> Any:
    """The fp32 ModelProto as a new one in fp16; the graph's inputs and outputs stay as they are.

    Raises:
        ExportError: a weight beyond fp16's 65504, or a graph that is not valid in fp16; names it.
    """
    import onnx
    from onnx import TensorProto

    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    del graph.value_info[:]
    floats = _float_values(model)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    made_inside = {name for node in graph.node if not is_outside(node) for name in node.output}
    made: dict[str, str] = {}
    nodes: list[Any] = []

    def cast(name: str, to: int, suffix: str) -> str:
        if name + suffix not in made:
            made[name + suffix] = f"{name}{suffix}"
            nodes.append(onnx.helper.make_node("Cast", [name], [name + suffix], name=f"{name}/Cast{suffix}", to=to))
        return made[name + suffix]

    for node in graph.node:
        inside = not is_outside(node)
        keep = _FLOAT_INPUTS.get(node.op_type, ())
        for place, name in enumerate(node.input):
            if name not in floats or (inside and place in keep):
                continue
            if inside and name in weights:
                node.input[place] = _half_weight(graph, weights, name)
            elif inside and name not in made_inside:
                node.input[place] = cast(name, TensorProto.FLOAT16, "_fp16")
            elif not inside and name in made_inside:
                node.input[place] = cast(name, TensorProto.FLOAT, "_fp32")
        if inside:
            _half_attributes(node)
        nodes.append(node)
    for output in graph.output:
        if output.name in made_inside:
            raise ExportError(
                f"the graph's output {output.name!r} does not come from the L2 norm: it must end with one for fp16"
            )
    # They are copied before their list is emptied, which frees them.
    ordered = [_copy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
    used = {name for node in graph.node for name in node.input}
    kept = [_copy(tensor) for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(half)
        onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"this graph has an operator that cannot be fp16; export it as fp32: {error}") from error
    return half


def _float_values(model: Any) -> set[str]:
    """Names of all float32 values of the graph."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    typed = (*graph.input, *graph.value_info, *graph.output)
    names = {value.name for value in typed if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return names | {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}


def _half_weight(graph: Any, weights: dict[str, Any], name: str) -> str:
    from onnx import numpy_helper

    halved = f"{name}_fp16"
    if halved not in weights:
        values = numpy_helper.to_array(weights[name])
        with np.errstate(over="ignore"):
            small = values.astype(np.float16)
        # Infinity may stand for "no limit"; a finite weight may not become one.
        if not np.array_equal(np.isfinite(small), np.isfinite(values)):
            raise ExportError(
                f"weight {name!r} reaches {np.abs(values).max():.6g}, fp16 ends at 65504: export it as fp32, or train with "
                "weight decay"
            )
        graph.initializer.append(numpy_helper.from_array(small, halved))
        weights[halved] = graph.initializer[-1]
    return halved


def _half_attributes(node: Any) -> None:
    """Constants and casts inside the network."""
    from onnx import TensorProto, numpy_helper

    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if node.op_type in ("Constant", "ConstantOfShape") and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))


def _copy(message: Any) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied
