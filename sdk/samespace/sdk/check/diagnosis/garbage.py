"""Recognising what a runtime makes of a quantised FULLY_CONNECTED that it misreads.

tflite-runtime 2.14 loads a layer whose weights have a scale for each channel, says nothing, and gives numbers that have
little or nothing to do with the input: of a last layer, often the same embedding for every picture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.diagnosis.revision import alignment, one_direction, separation

__all__ = ["has_fully_connected", "is_garbage"]

#: TFLite's number of the builtin operator.
_FULLY_CONNECTED = 9
#: Chance is 0.5 for the separation, 0 for the alignment.
_UNRELATED, _UNALIGNED = 0.65, 0.3


def is_garbage(embeddings: npt.NDArray[np.float32], reference: npt.NDArray[np.float32]) -> bool:
    """Whether ``(n, d)`` unit-norm embeddings say nothing about the pictures any more: all one direction, or unrelated."""
    if len(embeddings) < 4:
        return False
    if one_direction(embeddings):
        return not one_direction(reference)
    return separation(embeddings, reference) <= _UNRELATED and alignment(embeddings, reference) < _UNALIGNED


def has_fully_connected(model: bytes) -> bool:
    """Whether a ``.tflite`` file uses FULLY_CONNECTED; False for a file that cannot be read."""
    try:
        return _FULLY_CONNECTED in set(_operators(model))
    except (struct.error, IndexError, ValueError):
        return False


def _operators(model: bytes) -> Iterator[int]:
    """Builtin codes of the operators that a FlatBuffer of TFLite's schema lists (Model.operator_codes, its second field)."""
    root = _offset(model, 0)
    codes = _field(model, root, 1)
    if not codes:
        return
    start = _offset(model, codes)
    (count,) = struct.unpack_from("<I", model, start)
    for index in range(min(count, 1000)):
        table = _offset(model, start + 4 + 4 * index)
        # Codes above 126 are in the fourth field; older files have the first only.
        old, new = _field(model, table, 0), _field(model, table, 3)
        yield struct.unpack_from("<i", model, new)[0] if new else struct.unpack_from("<b", model, old)[0] if old else 0


def _offset(model: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", model, place)[0]


def _field(model: bytes, table: int, index: int) -> int:
    """Place of a table's field; 0 when it is left out."""
    vtable = table - struct.unpack_from("<i", model, table)[0]
    if vtable < 0:
        raise ValueError("no FlatBuffer")
    (size,) = struct.unpack_from("<H", model, vtable)
    if 4 + 2 * index >= size:
        return 0
    (step,) = struct.unpack_from("<H", model, vtable + 4 + 2 * index)
    return table + step if step else 0
