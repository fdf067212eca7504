"""The first file system of a kernel, written without root and without cpio: a "newc" archive.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samespace.sdk.errors import ConfigError

__all__ = ["Entry", "device", "file", "folder", "link", "modules_in_order", "newc"]


@dataclass(frozen=True)
class Entry:
    """One name in the archive.

    Attributes:
        name: relative path; its folder comes before it.
        mode: type and permissions, as ``stat`` has them.
        data: of a file its content, of a symbolic link its target.
        numbers: (major, minor) of a device.
    """

    name: str
    mode: int
    data: bytes = b""
    numbers: tuple[int, int] = (0, 0)


def file(name: str, data: bytes, *, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def folder(name: str) -> Entry:
    """A folder."""
    return Entry(name, stat.S_IFDIR | 0o755)


def link(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def device(name: str, major: int, minor: int) -> Entry:
    """A character device."""
    return Entry(name, stat.S_IFCHR | 0o600, b"", (major, minor))


def newc(entries: Iterable[Entry]) -> bytes:
    """The archive: the same bytes for the same entries, all of which belong to root and have no time.

    Raises:
        ValueError: a name comes twice, is absolute, or lies in a folder that does not come before it.
    """
    parts: list[bytes] = []
    known: dict[str, int] = {"": stat.S_IFDIR}
    for number, entry in enumerate(entries, start=1):
        parent = entry.name.rpartition("/")[0]
        if entry.name in known or entry.name.startswith("/") or not stat.S_ISDIR(known.get(parent, 0)):
            raise ValueError(f"{entry.name!r} comes twice, is absolute, or lies in a folder that does not come before it")
        known[entry.name] = entry.mode
        parts.append(_member(number, entry))
    parts.append(_member(0, Entry("TRAILER!!!", 0)))
    return b"".join(parts)


def _member(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # Inode, mode, user, group, links, time, size, device it is on (2), device that it is (2), length of the name, checksum.
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.numbers, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _to_four(head) + _to_four(entry.data)


def _to_four(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def modules_in_order(root: Path, wanted: Sequence[str], builtin: Iterable[str] = ()) -> list[Path]:
    """Files of kernel modules with all that they depend on, each behind what it depends on.

    Args:
        root: with all modules of a kernel (``NAME.ko``) somewhere below it.
        wanted: their names.
        builtin: names of those that the kernel itself contains.

    Raises:
        ConfigError: one of them is not there.
    """
    there = {path.stem.replace("-", "_"): path for path in sorted(root.rglob("*.ko"))}
    inside = {name.replace("-", "_") for name in builtin}
    found: dict[str, Path] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in found or name in inside:
            return
        if name not in there:
            raise ConfigError(f"the kernel in {root} has no module {name!r}: it is not the one that this was made for")
        for other in _depends(there[name]):
            add(other)
        found[name] = there[name]

    for name in wanted:
        add(name)
    return list(found.values())


def _depends(module: Path) -> list[str]:
    """What a module says that it needs: in its section ``.modinfo``, strings ``KEY=VALUE`` that end with zero bytes."""
    match = re.search(rb"\0depends=([\w,-]*)\0", module.read_bytes())
    return [name for name in match[1].decode().split(",") if name] if match else []
