"""Emoji as manifests of growing class lists: what a team has when its first model is trained, and what it has later.

All manifests have the same unseen validation and test classes (query styles against gallery styles). Of the classes that are
trained, one picture in six is never trained on by anybody: classification is measured on those.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from pathlib import Path

from samespace.cloud.data import make_split
from samespace.cloud.data.config import EmojiConfig, Size
from samespace.cloud.data.kinds import open_dataset
from samespace.sdk.files import atomic_write

__all__ = ["SHARES", "in_development", "prepare"]

#: Share of the trained classes, in percent, that each generation knows.
SHARES = (25, 50, 75, 100)


def prepare(folder: Path, size: Size) -> None:
    """Write the pictures and ``classes-25.csv`` … ``classes-100.csv`` and ``held-out.csv``; what is there stays."""
    if (folder / "held-out.csv").exists():
        return
    images = open_dataset(EmojiConfig(size=size))
    split = make_split(EmojiConfig(size=size), images)
    parts = {
        "validation_query": split.validation_query,
        "validation_gallery": split.validation_gallery,
        "test_query": split.test_query,
        "test_gallery": split.test_gallery,
    }
    unseen = [(index, part) for part, indices in parts.items() for index in indices]
    trained = [index for index in split.train if _draw(images.items[index].key, 6)]
    held = [index for index in split.train if not _draw(images.items[index].key, 6)]
    # A manifest's class has two pictures at least.
    counts = Counter(images.items[index].label for index in (*trained, *(index for index, _ in unseen)))
    trained, held = ([index for index in side if counts[images.items[index].label] > 1] for side in (trained, held))
    unseen = [(index, part) for index, part in unseen if counts[images.items[index].label] > 1]
    for index in (*trained, *held, *(index for index, _ in unseen)):
        _write(folder / _file(images.items[index].key), images.encoded(index))
    for share in SHARES:
        known = [(index, "train") for index in trained if _draw(images.items[index].label, 100) < share]
        rows = [
            (_file(item.key), item.label, part, item.source)
            for index, part in (*known, *unseen)
            for item in (images.items[index],)
        ]
        _table(folder / f"classes-{share}.csv", ("path", "label", "split", "source"), rows)
    # Last: with it, all is there.
    rows = [(_file(images.items[index].key), images.items[index].label) for index in held]
    _table(folder / "held-out.csv", ("path", "label"), rows)


def in_development(path: str) -> bool:
    """Whether a held-out picture is of the half by which settings are chosen."""
    return bool(_draw(f"development:{path}", 2))


def _draw(name: str, sides: int) -> int:
    return int.from_bytes(hashlib.sha1(f"upgrades:{name}".encode()).digest()[:8], "big") % sides


def _file(key: str) -> str:
    return f"pictures/{key}.png"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _table(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    atomic_write(path, text.getvalue())
