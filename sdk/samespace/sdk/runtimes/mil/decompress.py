"""Compressed weights: the ``constexpr_*`` operators, which turn small constants into the weights that were meant.

Each function takes the operator's constants by name and returns its result: the dense array, or, of the operators on sparse
data, the mask and the values where it is set. Meaning as in the MIL reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["DECOMPRESSORS", "along_axis", "decompress"]

_Array = npt.NDArray[Any]


def decompress(kind: str, values: Mapping[str, Any]) -> tuple[_Array, ...]:
    """Run one ``constexpr_*`` operator; returns its outputs.

    Raises:
        KeyError: there is no such operator here, or it lacks a constant.
        ValueError: shapes do not fit.
    """
    result = DECOMPRESSORS[kind](values)
    return result if isinstance(result, tuple) else (result,)


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
    where = [np.arange(edge) // _block(edge, blocks) for edge, blocks in zip(indices.shape, grid, strict=True)]
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
        blocks = np.repeat(blocks, _block(edge, blocks.shape[axis]), axis)
    return blocks


def _block(edge: int, count: int) -> int:
    """Edge of each of ``count`` equal blocks."""
    if count == 0 or edge % count:
        raise ValueError(f"an edge of {edge} is not divided by {count} blocks")
    return edge // count


def _sparse_blockwise_shift_scale(values: Mapping[str, Any]) -> tuple[_Array, _Array]:
    mask = values["data_mask"]
    data = _sparse_to_dense({"nonzero_data": values["nonzero_data"], "mask": mask})
    dense = _blockwise_shift_scale({**values, "data": data})
    return mask, dense[mask != 0]


def _lut_to_sparse(values: Mapping[str, Any]) -> tuple[_Array, _Array]:
    mask = values["indices_mask"]
    indices = _sparse_to_dense({"nonzero_data": values["indices_nonzero_data"], "mask": mask})
    dense = _lut_to_dense({**values, "indices": indices})
    if mask.shape != dense.shape:  # entries are vectors: each place of the mask stands for as many
        axis = int(values["vector_axis"])
        mask = np.repeat(mask, dense.shape[axis] // mask.shape[axis], axis)
    return mask, dense[mask != 0]


def _cast(values: Mapping[str, Any]) -> _Array:
    return values["source_val"].astype(np.float32)


DECOMPRESSORS: dict[str, Callable[[Mapping[str, Any]], _Array | tuple[_Array, ...]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
