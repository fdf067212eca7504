"""MIL operators that mix elements: convolution, pooling, matrix products, normalisation, reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from samespace.sdk.runtimes.mil.decompress import along_axis
from samespace.sdk.runtimes.mil.graph import Call, Translator, UnsupportedError

__all__ = ["OPERATORS"]

_REDUCTIONS = {
    "reduce_l1_norm": "ReduceL1", "reduce_l2_norm": "ReduceL2", "reduce_log_sum": "ReduceLogSum",
    "reduce_log_sum_exp": "ReduceLogSumExp", "reduce_max": "ReduceMax", "reduce_mean": "ReduceMean", "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd", "reduce_sum": "ReduceSum", "reduce_sum_square": "ReduceSumSquare",
}  # fmt: skip


def _conv(call: Call) -> str:
    spatial = call.rank() - 2
    inputs = [call.tensor("x"), call.tensor("weight")] + ([call.tensor("bias")] if call.has("bias") else [])
    return call.add(
        "Conv",
        *inputs,
        strides=call.integer_list("strides", [1] * spatial),
        dilations=call.integer_list("dilations", [1] * spatial),
        group=call.integer("groups", 1),
        **_padding(call, spatial),
    )


def _max_pool(call: Call) -> str:
    return call.add("MaxPool", call.tensor(), **_window(call))


def _avg_pool(call: Call) -> str:
    padded_count = not call.flag("exclude_padding_from_average")
    return call.add("AveragePool", call.tensor(), count_include_pad=int(padded_count), **_window(call))


def _window(call: Call) -> dict[str, Any]:
    kernel = call.integer_list("kernel_sizes")
    return {
        "kernel_shape": kernel,
        "strides": call.integer_list("strides", [1] * len(kernel)),
        "ceil_mode": int(call.flag("ceil_mode")),
        **_padding(call, len(kernel)),
    }


def _padding(call: Call, spatial: int) -> dict[str, Any]:
    kind = str(call.constant("pad_type", "valid"))
    if kind == "custom":
        pads = call.integer_list("pad", [0] * 2 * spatial)
        return {"pads": pads[::2] + pads[1::2]}  # MIL: begin and end by axis; ONNX: all begins, then all ends
    names = {"valid": "VALID", "same": "SAME_UPPER", "same_lower": "SAME_LOWER"}
    if kind not in names:
        raise UnsupportedError(f"{call}: padding {kind!r} is not supported")
    return {"auto_pad": names[kind]}


def _linear(call: Call) -> str:
    product = call.add("MatMul", call.tensor(), _transposed(call, "weight"))
    return call.add("Add", product, call.tensor("bias")) if call.has("bias") else product


def _matmul(call: Call) -> str:
    x = _transposed(call, "x") if call.flag("transpose_x") else call.tensor("x")
    y = _transposed(call, "y") if call.flag("transpose_y") else call.tensor("y")
    return call.add("MatMul", x, y)


def _transposed(call: Call, parameter: str) -> str:
    """The parameter with its last two axes swapped; at once where it is a constant, so that onnxruntime can pack it."""
    if call.is_constant(parameter):
        return call.graph.array(np.swapaxes(np.asarray(call.constant(parameter)), -1, -2))
    order = list(range(call.rank(parameter)))
    order[-1], order[-2] = order[-2], order[-1]
    return call.add("Transpose", call.tensor(parameter), perm=order)


def _batch_norm(call: Call) -> str:
    mean, variance = (np.asarray(call.constant(name), np.float64) for name in ("mean", "variance"))
    scale = np.asarray(call.constant("gamma", 1.0), np.float64) / np.sqrt(variance + call.number("epsilon", 1e-5))
    shift = np.asarray(call.constant("beta", 0.0), np.float64) - mean * scale
    scaled = call.add("Mul", call.tensor(), call.graph.array(along_axis(scale, 1, call.rank())))
    return call.add("Add", scaled, call.graph.array(along_axis(shift, 1, call.rank())))


def _layer_norm(call: Call) -> str:
    rank = call.rank()
    axes = sorted(axis % rank for axis in call.integer_list("axes", list(range(rank))))
    return _normalised(call, axes, 1e-5, gain_axes=axes)


def _instance_norm(call: Call) -> str:
    return _normalised(call, list(range(2, call.rank())), 1e-5, gain_axes=[1])


def _normalised(call: Call, axes: list[int], epsilon: float, gain_axes: list[int]) -> str:
    """``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` over ``axes``."""
    over = call.graph.integers(axes)
    centred = call.add("Sub", call.tensor(), call.add("ReduceMean", call.tensor(), over))
    variance = call.add("ReduceMean", call.add("Mul", centred, centred), over)
    y = call.add("Div", centred, call.add("Sqrt", call.add("Add", variance, call.graph.array(call.number("epsilon", epsilon)))))
    for parameter, operator in (("gamma", "Mul"), ("beta", "Add")):
        value = call.constant(parameter)
        if value is not None:
            shape = [1] * call.rank()
            for axis, edge in zip(gain_axes, np.shape(value), strict=True):
                shape[axis] = edge
            y = call.add(operator, y, call.graph.array(np.reshape(value, shape)))
    return y


def _l2_norm(call: Call) -> str:
    axes = call.graph.integers([axis for axis in (-3, -2, -1) if -axis <= call.rank()])
    total = call.add("Add", call.add("ReduceSumSquare", call.tensor(), axes), call.graph.array(call.number("epsilon", 1e-6)))
    return call.add("Div", call.tensor(), call.add("Sqrt", total))


def _reduction(onnx_name: str) -> Translator:
    def translate(call: Call) -> str:
        axes = call.integer_list("axes", list(range(call.rank())))
        return call.add(onnx_name, call.tensor(), call.graph.integers(axes), keepdims=int(call.flag("keep_dims")))

    return translate


def _einsum(call: Call) -> str:
    return call.add("Einsum", *call.tensors("values"), equation=str(call.constant("equation")))


OPERATORS: dict[str, Translator] = {
    **{mil: _reduction(name) for mil, name in _REDUCTIONS.items()},
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "conv": _conv,
    "einsum": _einsum,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "softmax": lambda call: call.add("Softmax", call.tensor(), axis=call.integer("axis", -1)),
}
