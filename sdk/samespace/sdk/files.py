"""Writing files and folders so that a reader sees the old state or the new one, never half of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_directory", "atomic_file", "atomic_write"]


def atomic_write(path: Path, data: bytes | str, *, mode: int = 0o666, overwrite: bool = True) -> None:
    """Write ``data`` to ``path``: temporary file beside it, fsync, rename.

    Args:
        path: where to; missing parent folders are made.
        data: bytes, or text that is written as UTF-8.
        mode: permissions, less the process's umask; a secret takes ``0o600``.
        overwrite: whether a file that is already there may be replaced.

    Raises:
        FileExistsError: ``overwrite`` is false and something is at ``path``.
    """
    with atomic_file(path, mode=mode, overwrite=overwrite) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes ``path`` when the block ends well, and vanishes when it does not.

    Arguments and errors as of :func:`atomic_write`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        # O_EXCL: nobody else's file; the permissions hold from the first byte, so that a secret is never readable.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        with os.fdopen(os.open(temporary, flags, mode), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            # A rename would replace silently; a link does not, and is as atomic.
            os.link(temporary, path)
            temporary.unlink()
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_directory(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    A folder (or file) that is already at ``path`` is replaced as a whole. Linux and macOS exchange the two in one step;
    elsewhere the old one steps aside for an instant, and comes back if the new one cannot take its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
            _fsync_directory(Path(folder))
        if not os.path.lexists(path):
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            _step_aside(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    _fsync_directory(path.parent)
    _remove(temporary)  # after an exchange the old content bears this name


def _beside(path: Path) -> Path:
    """A new hidden name in the same folder, so that a rename stays within one file system."""
    return path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step; False where the system or the file system cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            at_fdcwd, rename_exchange = -100, 2
            return libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0
        if sys.platform == "darwin":
            rename_swap = 2
            return libc.renamex_np(os.fsencode(one), os.fsencode(other), rename_swap) == 0
    except (AttributeError, OSError, TypeError):  # no such function in this C library; Windows has no CDLL(None)
        pass
    return False


def _step_aside(new: Path, path: Path) -> None:
    old = _beside(path)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync_directory(path: Path) -> None:
    # Windows and some network file systems cannot; the files themselves were synced.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
