"""Where a bundle's bytes come from: a folder, or a zip of it. Both may come from a stranger.

A source says which files there are and gives their bytes, never more than asked for. It refuses what is no plain file (links,
pipes, sockets, devices) and what a zip can do beyond a folder (duplicate or escaping names, encryption, lies about sizes).
It judges no content: that is the manifest's task.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from samespace.sdk.errors import BundleError, IntegrityError
from samespace.sdk.manifest import MAX_FILES, is_plain_path

__all__ = ["FolderSource", "Source", "ZipSource", "open_source"]

_CHUNK = 1 << 20
#: Entries of a folder or zip: the files, and the folders around them.
_MAX_ENTRIES = 2 * MAX_FILES
_MAX_DIRECTORY_BYTES = 16 << 20
#: What the zip and deflate readers of the standard library raise on bytes that are no good zip.
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, OverflowError)


class Source(Protocol):
    """A flat view of a folder: relative paths with forward slashes, and their bytes."""

    def names(self) -> tuple[frozenset[str], frozenset[str]]:
        """Paths of all files, and of all folders.

        Raises:
            IntegrityError: something is neither a plain file nor a folder, or there are absurdly many.
        """
        ...

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of one file, piece by piece.

        Raises:
            IntegrityError: it is no plain file, cannot be read, or has not exactly ``size`` bytes.
        """
        ...

    def read(self, name: str, limit: int) -> bytes:
        """All bytes of one small file.

        Raises:
            IntegrityError: it is no plain file, cannot be read, or has more than ``limit`` bytes.
        """
        ...


def open_source(path: Path) -> Source:
    """The source for a folder or a zip file.

    A link at ``path`` itself is followed, once: later changes of it do not lead elsewhere.

    Raises:
        BundleError: nothing is there, or something else.
    """
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, ValueError, RuntimeError):
        raise BundleError(f"{path}: no such bundle; give the path of a .samespace folder or of a zip of it") from None
    if stat.S_ISDIR(mode):
        return FolderSource(real)
    if stat.S_ISREG(mode):
        return ZipSource(real)
    raise BundleError(f"{path}: neither a folder nor a zip file")


class FolderSource:
    """A bundle as a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> tuple[frozenset[str], frozenset[str]]:
        files: set[str] = set()
        folders: set[str] = set()
        pending = [""]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(self._path / folder) as entries:
                    for entry in entries:
                        name = f"{folder}/{entry.name}" if folder else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            folders.add(name)
                            pending.append(name)
                        else:
                            self._refuse_special(name, entry.stat(follow_symlinks=False))
                            files.add(name)
                        if len(files) + len(folders) > _MAX_ENTRIES:
                            raise IntegrityError(f"{self._path}: more than {_MAX_ENTRIES} entries; this is no bundle")
            except OSError as error:
                raise IntegrityError(f"{self._path}: {folder!r} cannot be read ({error.strerror})") from None
        return frozenset(files), frozenset(folders)

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        with self._open(name) as (file, found):
            if found != size:
                raise IntegrityError(_wrong_size(self._path, name, found, size))
            done = 0
            try:
                # One byte more than expected is asked for, so that a file that grows meanwhile is noticed.
                while chunk := file.read(min(_CHUNK, size - done + 1)):
                    done += len(chunk)
                    if done > size:
                        break
                    yield chunk
            except OSError as error:
                raise IntegrityError(f"{self._path}: {name!r} cannot be read ({error.strerror})") from None
            if done != size:
                raise IntegrityError(_wrong_size(self._path, name, done, size))

    def read(self, name: str, limit: int) -> bytes:
        with self._open(name) as (_file, size):
            if size > limit:
                raise IntegrityError(_too_large(self._path, name, size, limit))
        return b"".join(self.chunks(name, size))

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        # What was judged must be what is opened: no link is followed, a pipe cannot block, and the open file is judged again.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            descriptor = os.open(self._path / name, flags)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise IntegrityError(f"{self._path}: {name!r} cannot be read ({reason})") from None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            self._refuse_special(name, status)
            yield file, status.st_size  # pyright: ignore[reportReturnType] - an unbuffered file reads like a BinaryIO

    def _refuse_special(self, name: str, status: os.stat_result) -> None:
        mode = status.st_mode
        if stat.S_ISLNK(mode):
            raise IntegrityError(f"{self._path}: {name!r} is a symbolic link; a bundle holds plain files only")
        if not stat.S_ISREG(mode):
            raise IntegrityError(f"{self._path}: {name!r} is a pipe, socket or device; a bundle holds plain files only")
        if os.name == "posix" and status.st_nlink != 1:
            raise IntegrityError(
                f"{self._path}: {name!r} is hard-linked, so it can be changed from elsewhere; copy the bundle (cp -r)"
            )


class ZipSource:
    """A bundle as a zip of the folder's content. Read anew on every call, so there is nothing to close."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> tuple[frozenset[str], frozenset[str]]:
        with self._open() as (_, entries):
            folders = {name.rstrip("/") for name in entries if name.endswith("/")}
            files = {name for name in entries if not name.endswith("/")}
        for name in files:
            folders.update(name[:at] for at, letter in enumerate(name) if letter == "/")
        return frozenset(files), frozenset(folders)

    def chunks(self, name: str, size: int) -> Iterator[bytes]:
        with self._open() as (archive, entries):
            if name not in entries:
                raise IntegrityError(f"{self._path}: {name!r} is gone from the zip")
            found = entries[name].file_size
            if found != size:
                raise IntegrityError(_wrong_size(self._path, name, found, size))
            done = 0
            # The reader inflates no more than is asked for, whatever the zip claims.
            with archive.open(entries[name]) as file:
                while chunk := file.read(min(_CHUNK, size - done + 1)):
                    done += len(chunk)
                    if done > size:
                        break
                    yield chunk
            if done != size:
                raise IntegrityError(_wrong_size(self._path, name, done, size))

    def read(self, name: str, limit: int) -> bytes:
        with self._open() as (_, entries):
            size = entries[name].file_size if name in entries else 0
        if size > limit:
            raise IntegrityError(_too_large(self._path, name, size, limit))
        return b"".join(self.chunks(name, size))

    @contextmanager
    def _open(self) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
        try:
            with self._path.open("rb") as file:
                self._judge_end(file)
                with zipfile.ZipFile(file) as archive:
                    yield archive, self._judged(archive.infolist())
        except _BROKEN_ZIP as error:
            raise IntegrityError(f"{self._path}: broken zip ({error}); copy it again") from None

    def _judge_end(self, file: BinaryIO) -> None:
        """Bound what the zip reader will take into memory, from the last bytes of the file."""
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 42))
        tail = file.read()
        end = tail[-22:]
        if len(end) < 22 or end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
            raise IntegrityError(f"{self._path}: not a bundle folder, and not a zip of one (or cut short, or with a comment)")
        entries, directory_bytes = struct.unpack("<HI", end[10:16])
        if tail.startswith(b"PK\6\7") or entries > _MAX_ENTRIES or directory_bytes > _MAX_DIRECTORY_BYTES:
            raise IntegrityError(f"{self._path}: a zip with too many files to be a bundle, or in the Zip64 format")

    def _judged(self, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            name = info.filename
            if name != info.orig_filename or not is_plain_path(name.removesuffix("/")):
                raise IntegrityError(f"{self._path}: entry {info.orig_filename!r} is not a plain path inside the bundle")
            if name in entries:
                raise IntegrityError(f"{self._path}: entry {name!r} is there twice")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFDIR if name.endswith("/") else stat.S_IFREG):
                raise IntegrityError(
                    f"{self._path}: entry {name!r} is a link or a special file; a bundle holds plain files only"
                )
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise IntegrityError(f"{self._path}: entry {name!r} is encrypted or compressed in an unusual way; zip it again")
            entries[name] = info
        return entries


def _wrong_size(path: Path, name: str, found: int, expected: int) -> str:
    return f"{path}: {name!r} has {found} bytes, the manifest says {expected}; copy the bundle again from its source"


def _too_large(path: Path, name: str, size: int, limit: int) -> str:
    return f"{path}: {name!r} has {size} bytes, more than the {limit} that any bundle needs"
