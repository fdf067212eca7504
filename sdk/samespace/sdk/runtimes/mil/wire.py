"""Reading protocol buffers from bytes, against a small table of the fields that matter.

Only the wire format (https://protobuf.dev/programming-guides/encoding/): variable-length integers, 4 and 8 byte numbers, and
length-delimited strings, messages, maps and packed numbers. It is plain Python on purpose: it needs no compiled schema and no
converter package, and damaged bytes raise :class:`ValueError` instead of reaching native code.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["Field", "Message", "decode"]

_Scalar = Literal["int", "float", "double", "string", "bytes"]


@dataclass(frozen=True)
class Field:
    """One field: its name, what it holds, and whether it may occur ``many`` times or is a ``map`` with string keys."""

    name: str
    kind: _Scalar | dict[int, Field]
    many: bool = False
    map: bool = False


#: Field number -> field. Numbers that are not in the table are skipped.
Message = dict[int, Field]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PACKED = {"float": np.dtype("<f4"), "double": np.dtype("<f8")}


def decode(data: bytes | memoryview, message: Message, depth: int = 0) -> dict[str, Any]:
    """Decode one message.

    Returns:
        name -> value of the fields that occur. Repeated fields are always there, as lists; maps as dicts.

    Raises:
        ValueError: the bytes are no such message.
    """
    if depth > 64:
        raise ValueError("messages are nested more than 64 deep")
    values: dict[str, Any] = {field.name: {} if field.map else [] for field in message.values() if field.many or field.map}
    for number, wire_type, raw in _fields(memoryview(data)):
        field = message.get(number)
        if field is None:
            continue
        if field.map:
            entry = decode(_bytes(raw), {1: Field("key", "string"), 2: Field("value", field.kind)}, depth + 1)
            values[field.name][entry.get("key", "")] = entry.get("value", {} if isinstance(field.kind, dict) else None)
        elif field.many:
            values[field.name].extend(_items(field, wire_type, raw, depth))
        else:
            values[field.name] = _one(field.kind, raw, depth)
    return values


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _varint(data, position)
            yield number, wire_type, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(data, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position + length > len(data):
            raise ValueError(f"field {number} ends {position + length - len(data)} bytes after the message")
        yield number, wire_type, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError(f"broken integer at byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _one(kind: _Scalar | Message, raw: int | memoryview, depth: int) -> Any:
    if kind == "int":
        if not isinstance(raw, int):
            raise ValueError("expected an integer")
        return raw - (1 << 64) if raw >= 1 << 63 else raw
    data = _bytes(raw)
    if isinstance(kind, dict):
        return decode(data, kind, depth + 1)
    if kind == "string":
        return str(data, "utf-8")
    if kind == "bytes":
        return bytes(data)
    return struct.unpack("<f" if kind == "float" else "<d", data)[0] if len(data) in (4, 8) else _fail("expected a number")


def _items(field: Field, wire_type: int, raw: int | memoryview, depth: int) -> list[Any]:
    """The elements that one occurrence of a repeated field holds: one, or many packed numbers."""
    if wire_type == _BYTES and field.kind in ("float", "double"):
        data = _bytes(raw)
        dtype = _PACKED[field.kind]
        return np.frombuffer(data, dtype).tolist() if len(data) % dtype.itemsize == 0 else _fail("broken packed numbers")
    if wire_type == _BYTES and field.kind == "int":
        data, items, position = _bytes(raw), [], 0
        while position < len(data):
            value, position = _varint(data, position)
            items.append(_one("int", value, depth))
        return items
    return [_one(field.kind, raw, depth)]


def _bytes(raw: int | memoryview) -> memoryview:
    return raw if isinstance(raw, memoryview) else _fail("expected bytes, found an integer")


def _fail(message: str) -> Any:
    raise ValueError(message)
