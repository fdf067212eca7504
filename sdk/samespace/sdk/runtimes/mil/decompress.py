"""Compressed weights: the ``constexpr_*`` operators, which turn small constants into the weights that were meant.

Each function takes the operator's constants by name and returns the dense array. Meaning as in the MIL reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DECOMPRESSORS", "along_axis", "decompress"]

_Array = npt.NDArray[Any]


def decompress(kind: str, values: Mapping[str, Any]) -> _Array:
    """Run one ``constexpr_*`` operator.

    Raises:
        KeyError: there is no such operator here, or it lacks a constant.
        ValueError: shapes do not fit.
    """
    return DECOMPRESSORS[kind](values)


def along_axis(vector: _Array, axis: int | None, rank: int) -> _Array:
    """Shape a per-channel vector so that it broadcasts along ``axis`` of a tensor of ``rank``; scalars stay as they are."""
    if vector.ndim == 0 or axis is None:
        return vector
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def _affine_dequantize(values: Mapping[str, Any]) -> _Array:
    data, scale = values["quantized_data"], values["scale"]
    axis = int(values["axis"])
    zero = along_axis(values["zero_point"].astype(np.float32), axis, data.ndim)
    return ((data.astype(np.float32) - zero) * along_axis(scale, axis, data.ndim).astype(np.float32)).astype(scale.dtype)


def _lut_to_dense(values: Mapping[str, Any]) -> _Array:
    indices, table = values["indices"], values["lut"]
    if "shape" in values:  # iOS 16 and 17: one table, indices packed in bytes, lowest bits first
        shape = tuple(int(edge) for edge in values["shape"])
        bits = max(1, (table.size - 1).bit_length())
        flat = np.unpackbits(indices.astype(np.uint8), bitorder="little")[: int(np.prod(shape)) * bits]
        return table.reshape(-1)[flat.reshape(-1, bits) @ (1 << np.arange(bits))].reshape(shape)
    # iOS 18: a grid of tables, each for a block of the indices; an entry is a vector that is laid along vector_axis.
    grid, (entries, width) = table.shape[:-2], table.shape[-2:]
    where = [np.arange(edge) // (edge // blocks) for edge, blocks in zip(indices.shape, grid, strict=True)]
    picked = table.reshape(*grid, entries, width)[(*np.ix_(*where), indices.astype(np.int64))]
    if width == 1:
        return picked[..., 0]
    axis = int(values["vector_axis"]) % indices.ndim
    moved = np.moveaxis(picked, -1, axis + 1)
    return moved.reshape(*indices.shape[:axis], indices.shape[axis] * width, *indices.shape[axis + 1 :])


def _sparse_to_dense(values: Mapping[str, Any]) -> _Array:
    data, mask = values["nonzero_data"], values["mask"]
    if "shape" in values:  # iOS 16 and 17: the mask is packed in bytes
        shape = tuple(int(edge) for edge in values["shape"])
        mask = np.unpackbits(mask.astype(np.uint8), bitorder="little")[: int(np.prod(shape))].reshape(shape)
    dense = np.zeros(mask.shape, data.dtype)
    dense[mask != 0] = data
    return dense


def _blockwise_shift_scale(values: Mapping[str, Any]) -> _Array:
    data, scale = values["data"], values["scale"]
    result = data.astype(np.float32)
    if "offset" in values:
        result = result - _repeat(values["offset"].astype(np.float32), data.shape)
    return (result * _repeat(scale.astype(np.float32), data.shape)).astype(scale.dtype)


def _repeat(blocks: _Array, shape: tuple[int, ...]) -> _Array:
    for axis, edge in enumerate(shape):
        blocks = np.repeat(blocks, edge // blocks.shape[axis], axis)
    return blocks


def _cast(values: Mapping[str, Any]) -> _Array:
    return values["source_val"].astype(np.float32)


DECOMPRESSORS: dict[str, Callable[[Mapping[str, Any]], _Array]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
