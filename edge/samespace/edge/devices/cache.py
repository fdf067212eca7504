"""Where what devices need is installed: one folder for each set, complete and recorded, or not there.

A set is built in a hidden folder beside its place and renamed when it is complete. Its record (``installed.json``) lists every
file with size, time and SHA-256: looking at it takes a moment, and a set of which something is missing or changed is not used.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from samespace.sdk.errors import ConfigError

__all__ = ["RECORD", "Record", "cache_dir", "damage", "enough_room", "installing", "read_record", "remove_set", "set_folder"]

RECORD = "installed.json"


@dataclass(frozen=True)
class Record:
    """What is in a set's folder.

    Attributes:
        recipe: of the set; another one than the program's means that it is out of date.
        lock: what it was made from: name -> version and SHA-256, or whatever the set notes.
        files: relative path -> ``[size, mtime in ns, sha256]``, or ``["->", target]`` for a symbolic link.
    """

    recipe: str
    lock: Mapping[str, Any]
    files: Mapping[str, list[Any]]

    @property
    def size(self) -> str:
        """Of all files, in words."""
        return f"{sum(entry[0] for entry in self.files.values() if entry[0] != '->') / 1e6:.0f} MB"


def cache_dir() -> Path:
    """Where all sets are: ``SAMESPACE_CACHE_DIR`` if it is set, else the platform's folder for caches of this user."""
    override = os.environ.get("SAMESPACE_CACHE_DIR")
    return Path(override).absolute() if override else platformdirs.user_cache_path("samespace", appauthor=False)


def set_folder(name: str) -> Path:
    """Where the set of that name is when it is installed."""
    return cache_dir() / name


@contextmanager
def installing(name: str, recipe: str, lock: dict[str, Any]) -> Iterator[Path | None]:
    """Yield an empty folder that becomes the set when the block ends well, recorded, and vanishes when it does not.

    One process at a time installs a set; others wait. If another one has installed it meanwhile, None is yielded.

    Args:
        name: of the set.
        recipe: for the record.
        lock: for the record; the block fills it.

    Raises:
        ConfigError: the disk or a quota is full, or the cache folder cannot be written.
    """
    place = set_folder(name)
    new, old = place.with_name(f".{name}.new"), place.with_name(f".{name}.old")
    try:
        with _locked(name):
            if damage(name, recipe) is None:
                yield None
                return
            # Whatever an ended process left behind is nobody's.
            _clear(new, old)
            new.mkdir()
            try:
                yield new
                record = Record(recipe, lock, _listed(new))
                (new / RECORD).write_text(json.dumps(asdict(record)))
                os.sync()
                if place.exists():
                    place.rename(old)
                new.rename(place)
            finally:
                _clear(new, old)
    except OSError as error:
        raise ConfigError(_cannot_write(name, error)) from None


def enough_room(name: str, recipe: str, room: int) -> None:
    """See that the disk has ``room`` bytes for building a set, where it is not there already.

    Raises:
        ConfigError: it has not.
    """
    if damage(name, recipe) is None:
        return
    cache_dir().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_dir()).free
    if free < room:
        raise ConfigError(
            f"{name!r} takes {room >> 20} MB while it is built, and {cache_dir()} has {free >> 20} MB free; make "
            "room, or set SAMESPACE_CACHE_DIR to a folder with more"
        )


def remove_set(name: str, *also: Path) -> bool:
    """Remove a set, and other folders of it; whether there was anything.

    Raises:
        ConfigError: it cannot be removed.
    """
    place = set_folder(name)
    if not place.parent.is_dir():
        return False
    with _locked(name):
        there = place.exists()
        found = there or any(folder.exists() for folder in also)
        old = place.with_name(f".{name}.old")
        _clear(old)
        if there:
            # Out of sight in one step: no half of it is ever found.
            place.rename(old)
        _clear(old, place.with_name(f".{name}.new"), *also)
    return found


def read_record(name: str) -> Record | None:
    """The record of a set; None when there is none that can be read."""
    try:
        value = json.loads((set_folder(name) / RECORD).read_bytes())
        return Record(str(value["recipe"]), dict(value["lock"]), dict(value["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def damage(name: str, recipe: str, *, thorough: bool = False) -> str | None:
    """What keeps a set from being used, without what to do about it; None when it is good.

    Args:
        name: of the set.
        recipe: that it must be made by.
        thorough: hash every file; else only those whose time has changed.
    """
    place, record = set_folder(name), read_record(name)
    if not place.exists():
        return "it is not installed"
    if record is None:
        return f"{place} has no readable {RECORD}"
    if record.recipe != recipe:
        return f"{place} was made for another version of samespace"
    try:
        bad = [path for path, entry in record.files.items() if not _as_recorded(place / path, entry, thorough)]
    except OSError as error:
        return f"{place} cannot be read ({error.strerror})"
    if bad:
        return f"{place}: {len(bad)} of {len(record.files)} files are missing or changed, e.g. {bad[0]}"
    return None


def _as_recorded(path: Path, entry: list[Any], thorough: bool) -> bool:
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(status.st_mode) or entry[0] == "->":
        return stat.S_ISLNK(status.st_mode) and entry == ["->", os.readlink(path)]
    if status.st_size != entry[0] or not stat.S_ISREG(status.st_mode):
        return False
    # A copied or restored cache has other times, and the same bytes.
    return (status.st_mtime_ns == entry[1] and not thorough) or _sha256(path) == entry[2]


def _listed(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for parent, folders, names in os.walk(folder):
        for name in sorted([*names, *folders]):
            path = Path(parent, name)
            key = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[key] = ["->", os.readlink(path)]
            elif path.is_file():
                status = path.stat()
                found[key] = [status.st_size, status.st_mtime_ns, _sha256(path)]
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Hold the set's lock; the system gives it back when the process ends, however it does."""
    import fcntl  # not on Windows, where none of these sets can be used

    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / f".{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process installs {name!r}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clear(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _cannot_write(name: str, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"{reason}: make room there, or set SAMESPACE_CACHE_DIR to a folder with more"
    else:
        reason = f"{reason}; set SAMESPACE_CACHE_DIR to a folder that you can write to"
    return f"{name!r} cannot be installed into {cache_dir()}: {reason}"
