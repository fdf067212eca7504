"""Core ML's weight file: a 64-byte header, then for each array a 64-byte record that says where its bytes are."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["read_blob", "unpack_bytes"]

_SENTINEL = 0xDEADBEEF
_NUMPY = {
    "fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "bool": "?", "int8": "i1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    "uint8": "u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
}  # fmt: skip
_BITS = {"int4": 4, "uint4": 4, "uint2": 2, "uint1": 1, "uint6": 6, "uint3": 3}


def read_blob(weights: bytes, offset: int, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The array whose record is at ``offset`` of a weight file.

    Raises:
        ValueError: there is no such record, or it points outside the file.
    """
    if not 0 <= offset <= len(weights) - 64:
        raise ValueError(f"a weight's record at byte {offset} is outside the weight file of {len(weights)} bytes")
    sentinel, _, size, start = struct.unpack_from("<IIQQ", weights, offset)
    if sentinel != _SENTINEL:
        raise ValueError(f"no weight record at byte {offset} of the weight file")
    if start + size > len(weights):
        raise ValueError(f"the weight at byte {start} ends after the weight file of {len(weights)} bytes")
    return unpack_bytes(weights[start : start + size], dtype, shape)


def unpack_bytes(data: bytes, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Little-endian bytes to an array; types below 8 bits lie packed, lowest bits first.

    Raises:
        ValueError: the dtype is unknown, or the bytes are too few for the shape.
    """
    if dtype in _NUMPY:
        return np.frombuffer(data, _NUMPY[dtype]).reshape(shape)
    if dtype not in _BITS:
        raise ValueError(f"constants of type {dtype} are not supported")
    bits, count = _BITS[dtype], int(np.prod(shape))
    flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if len(flat) < count * bits:
        raise ValueError(f"{len(data)} bytes are too few for {count} values of type {dtype}")
    values = flat[: count * bits].reshape(count, bits) @ (1 << np.arange(bits)).astype(np.uint8)
    if dtype.startswith("int"):
        values = (values.astype(np.int8) ^ (1 << (bits - 1))) - (1 << (bits - 1))
    return values.astype(np.int8 if dtype.startswith("int") else np.uint8).reshape(shape)
