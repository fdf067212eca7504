"""MIL operators that only move elements: reshape, transpose, slice, join, pad."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from samespace.sdk.runtimes.mil.graph import Call, Translator, UnsupportedError

__all__ = ["OPERATORS"]

_END = np.iinfo(np.int64).max


def _reshape(call: Call) -> str:
    return call.add("Reshape", call.tensor(), _int64(call, "shape"))


def _tile(call: Call) -> str:
    return call.add("Tile", call.tensor(), _int64(call, "reps"))


def _int64(call: Call, parameter: str) -> str:
    if call.is_constant(parameter):
        return call.graph.integers(call.integer_list(parameter))
    return call.add("Cast", call.tensor(parameter), to=TensorProto.INT64)


def _transpose(call: Call) -> str:
    rank = call.rank()
    return call.add("Transpose", call.tensor(), perm=[axis % rank for axis in call.integer_list("perm")])


def _expand_dims(call: Call) -> str:
    return call.add("Unsqueeze", call.tensor(), call.graph.integers(call.integer_list("axes")))


def _squeeze(call: Call) -> str:
    axes = [call.graph.integers(call.integer_list("axes"))] if call.has("axes") else []
    return call.add("Squeeze", call.tensor(), *axes)


def _concat(call: Call) -> str:
    if call.flag("interleave"):
        raise UnsupportedError(f"{call}: interleaving is not supported")
    return call.add("Concat", *call.tensors("values"), axis=call.integer("axis", 0))


def _stack(call: Call) -> str:
    axis = call.integer("axis", 0)
    parts = [call.add("Unsqueeze", value, call.graph.integers([axis])) for value in call.tensors("values")]
    return call.add("Concat", *parts, axis=axis)


def _split(call: Call) -> list[str]:
    count = len(call.operation.outputs)
    axis = call.integer("axis", 0)
    if call.has("split_sizes"):
        sizes = call.graph.integers(call.integer_list("split_sizes"))
        parts = call.add("Split", call.tensor(), sizes, outputs=count, axis=axis)
    else:
        parts = call.add("Split", call.tensor(), outputs=count, axis=axis, num_outputs=count)
    return parts if count > 1 else [parts]


def _slice_by_index(call: Call) -> str:
    begin, end = call.integer_list("begin"), call.integer_list("end")
    rank = len(begin)
    stride = call.integer_list("stride", [1] * rank)
    masks = {name: call.integer_list(name, [0] * rank) for name in ("begin_mask", "end_mask", "squeeze_mask")}
    for axis in range(rank):
        if masks["squeeze_mask"][axis]:
            end[axis], stride[axis] = (begin[axis] + 1 if begin[axis] != -1 else _END), 1
            continue
        if masks["begin_mask"][axis]:
            begin[axis] = 0 if stride[axis] > 0 else _END
        if masks["end_mask"][axis]:
            end[axis] = _END if stride[axis] > 0 else -_END
    parts = [call.graph.integers(values) for values in (begin, end, list(range(rank)), stride)]
    y = call.add("Slice", call.tensor(), *parts)
    squeezed = [axis for axis in range(rank) if masks["squeeze_mask"][axis]]
    return call.add("Squeeze", y, call.graph.integers(squeezed)) if squeezed else y


def _slice_by_size(call: Call) -> str:
    begin, size = call.integer_list("begin"), call.integer_list("size")
    end = [_END if edge == -1 else start + edge for start, edge in zip(begin, size, strict=True)]
    return call.add("Slice", call.tensor(), call.graph.integers(begin), call.graph.integers(end))


def _pad(call: Call) -> str:
    pads = call.integer_list("pad")
    count = len(pads) // 2
    mode = str(call.constant("mode", "constant"))
    onnx_mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(mode)
    if onnx_mode is None:
        raise UnsupportedError(f"{call}: mode {mode!r} is not supported")
    before = [0] * (call.rank() - count)
    amounts = call.graph.integers([*before, *pads[::2], *before, *pads[1::2]])
    value = call.graph.array(call.number("constant_val", 0.0))
    return call.add("Pad", call.tensor(), amounts, value, mode=onnx_mode)


def _gather(call: Call) -> str:
    if call.integer("batch_dims", 0):
        raise UnsupportedError(f"{call}: batch_dims is not supported")
    return call.add("Gather", call.tensor(), call.tensor("indices"), axis=call.integer("axis", 0))


def _shape(call: Call) -> str:
    return call.add("Cast", call.add("Shape", call.tensor()), to=TensorProto.INT32)


OPERATORS: dict[str, Translator] = {
    "concat": _concat,
    "expand_dims": _expand_dims,
    "flatten2d": lambda call: call.add("Flatten", call.tensor(), axis=call.integer("axis", 1)),
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "shape": _shape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
