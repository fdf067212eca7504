"""The one small protocol behind which every image set stands, and the in-memory implementation of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from samespace.sdk.errors import DataError
from samespace.sdk.identity import digest

__all__ = ["ArrayImages", "ImageSet", "Item"]


@dataclass(frozen=True, slots=True)
class Item:
    """What is known of one picture without decoding it."""

    key: str  #: unique within the set, the same on every machine: ``"twemoji/red-heart"``, ``"mugs/phone/0012.jpg"``
    label: str  #: the class
    source: str = ""  #: vendor, style or camera; empty where nobody said
    part: str = ""  #: the part of the split that a manifest prescribes; empty where it is ours to choose


class ImageSet(Protocol):
    """Pictures with labels: indexable, decoded when asked for. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """For people and logs."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """One a picture, in an order that does not depend on the file system."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when any picture changes; what is derived from the set is cached under it."""
        ...

    @property
    def attribution(self) -> str:
        """Authors and licences, to be shown wherever the pictures are; empty where unknown."""
        ...

    def load(self, index: int) -> Image.Image:
        """The picture at source resolution, as decoded. ``Preprocess`` applies EXIF, alpha and colour, not this.

        Raises:
            DataError: it cannot be decoded.
        """
        ...

    def encoded(self, index: int) -> bytes:
        """The PNG or JPEG bytes that a device would get."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Pictures of one size, held in memory.

    Args:
        name: for people and logs.
        items: one a picture.
        pixels: ``(n, h, w, 3)`` uint8, RGB.
        attribution: authors and licences.

    Raises:
        DataError: shape, dtype or number do not fit, or a key is there twice.
    """

    name: str
    items: Sequence[Item]
    pixels: npt.NDArray[np.uint8]
    attribution: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 4 or self.pixels.shape[3] != 3:
            raise DataError(f"{self.name}: pixels must be (n, h, w, 3) uint8, not {self.pixels.dtype} {self.pixels.shape}")
        if len(self.items) != len(self.pixels):
            raise DataError(f"{self.name}: {len(self.items)} items for {len(self.pixels)} pictures; give one item a picture")
        refuse_duplicate_keys(self.name, self.items)
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", digest(repr(self.pixels.shape).encode() + self.pixels.tobytes()))

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def encoded(self, index: int) -> bytes:
        buffer = io.BytesIO()
        self.load(index).save(buffer, "PNG")
        return buffer.getvalue()


def refuse_duplicate_keys(name: str, items: Sequence[Item]) -> None:
    """Raise :class:`DataError` that names the first key that is there twice."""
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise DataError(f"{name}: the picture {item.key} is listed twice; list it once")
        seen.add(item.key)
