"""Wheels for another architecture, by pip and its configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import zipfile
from pathlib import Path

from samespace.edge.devices.sysroot.architectures import PYTHON, Architecture
from samespace.edge.devices.sysroot.commands import run
from samespace.sdk.errors import ConfigError

__all__ = ["describe_wheel", "download_wheels", "unpack_wheel"]

#: Folders of no use on a device.
_LEFT_OUT = ("tests", "test", "transformers", "quantization", "datasets", "f2py", "distutils", "typing/tests")


def download_wheels(architecture: Architecture, folder: Path) -> list[Path]:
    """Download the architecture's wheels; those that are there already stay.

    Returns:
        Their files, sorted.

    Raises:
        ConfigError: pip is missing or failed.
    """
    if importlib.util.find_spec("pip") is None:
        raise ConfigError(
            f"downloading wheels needs pip, which {sys.executable} has not: install it there (python -m ensurepip)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    abi = f"cp{PYTHON[0]}{PYTHON[1]}"
    tags = [tag for platform in architecture.platforms for tag in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--progress-bar", "off"]
    command += ["--no-deps", "--only-binary=:all:", "--python-version", f"{PYTHON[0]}.{PYTHON[1]}", "--implementation", "cp"]
    command += ["--abi", abi, "--abi", "abi3", "--abi", "none", *tags, "--dest", str(folder), *architecture.wheels]
    run(command, "downloading wheels", seconds=900)
    names = {_plain(wheel.partition("==")[0]): wheel.partition("==")[2] for wheel in architecture.wheels}
    found = sorted(folder.glob("*.whl"))
    for path in found:
        name, version = path.name.split("-")[:2]
        if names.get(_plain(name)) != version:
            path.unlink()  # of an earlier recipe
    return [path for path in found if path.exists()]


def describe_wheel(path: Path) -> dict[str, str]:
    """Name, version and SHA-256 of a wheel."""
    name, version = path.name.split("-")[:2]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": _plain(name), "version": version, "sha256": sha256, "file": path.name}


def unpack_wheel(path: Path, site: Path) -> None:
    """Unpack a wheel into a folder of packages, less what a device does not need.

    Raises:
        zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not set(name.split("/")[:-1]) & set(_LEFT_OUT)]
        archive.extractall(site, names)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
