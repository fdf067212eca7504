"""samespace.sdk for a device: its modules and the worker, in a folder that is named after their content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
import time
from pathlib import Path

import samespace.sdk
from samespace.edge.devices.cache import cache_dir
from samespace.edge.devices.sysroot.architectures import PYTHON
from samespace.edge.devices.sysroot.commands import run
from samespace.sdk.errors import ConfigError

__all__ = ["compile_python", "guest_sdk", "remove_old_guests"]

_NAME = "guest-sdk"
_KEPT_SECONDS = 3 * 86400
_WORKER = Path(__file__).parents[1] / "worker.py"


def guest_sdk() -> Path:
    """A folder with ``samespace/sdk`` as this program has it and ``worker.py``; made when it is not there yet, and verified.

    So a device always runs the same samespace as the check, whenever its sysroot was made.

    Raises:
        ConfigError: it cannot be written.
    """
    sources = _sources()
    wanted = _digest(sources)
    place = cache_dir() / f"{_NAME}-{wanted[:32]}"
    if place.is_dir() and _digest(_found(place)) == wanted:
        with contextlib.suppress(OSError):
            os.utime(place)  # in use: not old
        return place
    new = place.with_name(f".{place.name}.{secrets.token_hex(6)}.new")
    try:
        _write(new, sources)
        compile_python([new])
        if place.exists():  # damaged
            old = new.with_suffix(".old")
            place.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        new.rename(place)
    except OSError as error:
        # Another process may have been first; two make the same.
        if not place.is_dir() or _digest(_found(place)) != wanted:
            raise ConfigError(
                f"samespace cannot be copied for devices to {place}: {error.strerror}; make room there, or set "
                "SAMESPACE_CACHE_DIR to another folder"
            ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return place


def remove_old_guests() -> None:
    """Remove the copies of other versions of samespace that no device has been started with for days."""
    for folder in cache_dir().glob(f"{_NAME}-*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < time.time() - _KEPT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def compile_python(folders: list[Path], python: list[str] | None = None) -> None:
    """Byte-compile all modules below the folders: under emulation a start takes half the time.

    Args:
        folders: where.
        python: starts the device's own Python, which is asked where this machine has none of its version; None leaves it.

    Raises:
        ConfigError: the compiler cannot be started, or the disk is full.
    """
    found = shutil.which(f"python{PYTHON[0]}.{PYTHON[1]}")
    if sys.version_info[:2] == PYTHON:
        command = [sys.executable, "-I"]
    elif found is not None:
        command = [found, "-I"]
    elif python is not None:
        command = python
    else:
        return
    # A file that does not compile (one for another Python, as templates are) is no reason to fail.
    script = (
        "import compileall, py_compile, sys\n"
        "mode = py_compile.PycInvalidationMode.UNCHECKED_HASH\n"
        "for folder in sys.argv[1:]:\n"
        "    compileall.compile_dir(folder, maxlevels=30, quiet=2, invalidation_mode=mode)\n"
    )
    run([*command, "-c", script, *map(str, folders)], "byte-compiling", seconds=900)


def _sources() -> dict[str, Path]:
    """Relative path in the guest's folder -> file here."""
    root = Path(str(samespace.sdk.__file__)).parent
    found = {f"samespace/sdk/{path.relative_to(root).as_posix()}": path for path in _files(root)}
    return {**found, "worker.py": _WORKER}


def _found(place: Path) -> dict[str, Path]:
    return {path.relative_to(place).as_posix(): path for path in _files(place)}


def _files(root: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if folder != "__pycache__"]
        found += [Path(parent, name) for name in names if not name.endswith(".pyc")]
    return sorted(found)


def _digest(files: dict[str, Path]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(files):
        data = files[name].read_bytes()
        hasher.update(f"{name} {len(data)}\n".encode() + data)
    return hasher.hexdigest()


def _write(folder: Path, sources: dict[str, Path]) -> None:
    for name, path in sources.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
