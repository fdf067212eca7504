"""Recognising int8 sums that saturate, as on x86 processors without VNNI, and int8 that is merely coarse.

Their instruction VPMADDUBSW multiplies unsigned with signed bytes and adds two neighbouring products in 16 bits, which two
large ones do not fit into. A processor with VNNI or another architecture does not show it, so it is emulated: the graph runs
in the onnx package's reference evaluator, with its quantised convolutions and products summed as that instruction does, or
exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.diagnosis.hypotheses import unit_rows

__all__ = ["emulated_embeddings"]

_DOMAIN = "samespace.integers"


def emulated_embeddings(
    model: bytes, name: str, images: npt.NDArray[np.generic], *, saturating: bool
) -> npt.NDArray[np.float32] | None:
    """What a quantised ONNX model gives, by integer arithmetic that does not depend on this machine's processor.

    Args:
        model: the ONNX file: quantised layers are ``DequantizeLinear`` around ``Conv``, ``Gemm`` or ``MatMul``.
        name: of its input.
        images: ``(n, size, size, 3)`` as the input takes them.
        saturating: whether sums of two products saturate at 16 bits.

    Returns:
        ``(n, d)`` float32 unit-norm; None when the onnx package is not there, nothing is quantised, or it cannot be evaluated.
    """
    try:
        import onnx
        from onnx.reference import ReferenceEvaluator
        from onnx.reference.op_run import OpRun
    except ImportError:
        return None

    class IntegerConv(OpRun):
        op_domain = _DOMAIN

        def _run(self, x: Any, xs: Any, xz: Any, w: Any, ws: Any, *bias: Any, strides: Any = None, pads: Any = None) -> Any:
            sums = _convolved(x, xz, w, list(strides or (1, 1)), list(pads or (0, 0, 0, 0)), saturating)
            return (_scaled(sums, xs, ws, bias[0] if bias else None, axis=1),)

    try:
        graph = onnx.load_model_from_string(model)
        if not _replace(graph.graph):
            return None
        for used in graph.opset_import:
            if used.domain in ("", "ai.onnx"):
                # The evaluator has DequantizeLinear from 19 on, which only added types to it.
                used.version = max(19, used.version)
        graph.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
        evaluator = ReferenceEvaluator(graph, new_ops=[IntegerConv])
        # The last parts of a graph may be made for one picture or for any number: one at a time always works.
        rows = np.concatenate([_first(evaluator.run(None, {name: images[i : i + 4]})) for i in range(0, len(images), 4)])
    except Exception:  # the evaluator raises whatever went wrong inside an operator; then there is nothing to compare with
        return None
    return unit_rows(rows) if rows.ndim == 2 and np.isfinite(rows).all() else None


def _replace(graph: Any) -> int:
    """Put convolutions of integers in the place of quantised ones; says how many."""
    import onnx

    constants = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    count = 0
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        value, weight = (made_by.get(name) for name in node.input[:2])
        if value is None or weight is None or {value.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        signed = weight.input[0] in constants and constants[weight.input[0]].data_type == onnx.TensorProto.INT8
        if not signed or attributes.get("group", 1) != 1 or any(step != 1 for step in attributes.get("dilations", [1])):
            continue  # depthwise convolutions have kernels of their own, which do not saturate
        kept = {name: attributes[name] for name in ("strides", "pads") if name in attributes}
        inputs = [*value.input[:3], *weight.input[:2], *node.input[2:]]
        made = onnx.helper.make_node("IntegerConv", inputs, node.output, domain=_DOMAIN, name=node.name, **kept)
        node.CopyFrom(made)
        count += 1
    return count


def _first(outputs: Any) -> npt.NDArray[Any]:
    return np.asarray(outputs[0])


def _convolved(
    x: npt.NDArray[Any], zero: npt.NDArray[Any], w: npt.NDArray[np.int8], strides: list[int], pads: list[int], saturating: bool
) -> npt.NDArray[np.int32]:
    """``(n, o, h, w)`` sums of ``(x - zero) * w``, of pairs that saturate if asked for."""
    # Signed activations are moved to unsigned bytes first, as the kernels do.
    shift = 128 if x.dtype == np.int8 else 0
    offset = int(np.asarray(zero).reshape(-1)[0]) + shift
    values = x.astype(np.int32) + shift
    values = np.pad(values, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=offset)
    out, _, kh, kw = w.shape
    view: Any = np.lib.stride_tricks.sliding_window_view
    windows = view(values, (kh, kw), axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    n, channels, height, width = windows.shape[:4]
    # Channels are the innermost of the products: kernels work on NHWC.
    left = windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, kh * kw * channels)
    right = w.astype(np.int32).transpose(2, 3, 1, 0).reshape(-1, out)
    if len(right) % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))
    sums = np.zeros((len(left), out), np.int32)
    for k in range(0, len(right), 2):
        pair = left[:, k, None] * right[k] + left[:, k + 1, None] * right[k + 1]
        sums += np.clip(pair, -(1 << 15), (1 << 15) - 1) if saturating else pair
    sums -= offset * right.sum(axis=0)
    return sums.reshape(n, height, width, out).transpose(0, 3, 1, 2)


def _scaled(
    sums: npt.NDArray[np.int32], xs: npt.NDArray[Any], ws: npt.NDArray[Any], bias: npt.NDArray[Any] | None, axis: int
) -> npt.NDArray[np.float32]:
    shape = [1] * sums.ndim
    shape[axis] = -1
    scaled = sums.astype(np.float64) * float(np.asarray(xs).reshape(-1)[0]) * np.asarray(ws, np.float64).reshape(shape)
    return (scaled if bias is None else scaled + np.asarray(bias).reshape(shape)).astype(np.float32)
