"""The npm packages that the page runs, pinned by version and by the hash of their tarball, and fetched by npm."""

from __future__ import annotations

import base64
import hashlib
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from samespace.edge.devices.sysroot.commands import run
from samespace.sdk.errors import ConfigError

__all__ = ["PACKAGES", "NpmPackage", "fetch", "unpack"]

#: Seconds that npm may take for one package.
_PATIENCE = 600.0


@dataclass(frozen=True)
class NpmPackage:
    """One package.

    Attributes:
        name: as npm calls it.
        version: exactly that one.
        integrity: of the tarball, as npm writes it: ``sha512-`` and base64.
        files: what is taken of it, relative to the package.
    """

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]

    @property
    def tarball(self) -> str:
        """File name of its tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    NpmPackage(
        "onnxruntime-web",
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        (
            "package.json",
            *(f"dist/ort.{kind}.min.mjs" for kind in ("wasm", "webgpu")),
            *(f"dist/ort-wasm-simd-threaded{kind}.{end}" for kind in ("", ".asyncify") for end in ("mjs", "wasm")),
        ),
    ),
    NpmPackage(
        "@litertjs/core",
        "2.5.3",
        "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        (
            "package.json",
            "dist/index.js",
            *(f"wasm/litert_wasm_{kind}internal.{end}" for kind in ("", "compat_", "threaded_") for end in ("js", "wasm")),
        ),
    ),
    NpmPackage(
        "@litertjs/wasm-utils",
        "2.5.3",
        "sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        ("package.json", "dist/index.js"),
    ),
)


def fetch(package: NpmPackage, folder: Path) -> Path:
    """Its tarball in ``folder``; one that is there and has the right hash is not fetched again.

    Raises:
        ConfigError: npm is missing or failed, or the tarball is another one than was pinned.
    """
    path = folder / package.tarball
    if path.is_file() and _integrity(path) == package.integrity:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".npm-") as temporary:
        # In a folder of its own: npm must not take the configuration of the project that we happen to stand in.
        command = ["npm", "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--pack-destination", temporary]
        run(command, f"fetching {package.name} {package.version}", seconds=_PATIENCE, folder=Path(temporary))
        fetched = Path(temporary, package.tarball)
        found = _integrity(fetched) if fetched.is_file() else "no tarball"
        if found != package.integrity:
            raise ConfigError(
                f"npm gave another {package.name} {package.version} than samespace was tested with "
                f"({found}, not {package.integrity}): which registry does npm use?"
            )
        fetched.replace(path)
    return path


def unpack(package: NpmPackage, tarball: Path, folder: Path) -> None:
    """Write the files that are taken of a package into ``folder``/NAME.

    Raises:
        ConfigError: one of them is not in the tarball.
    """
    with tarfile.open(tarball) as archive:
        for name in package.files:
            try:
                source = archive.extractfile(f"package/{name}")
            except KeyError:
                source = None
            if source is None:
                raise ConfigError(
                    f"{package.name} {package.version} has no file {name}: it is not what samespace was tested with"
                )
            target = folder.joinpath(package.name, PurePosixPath(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read())


def _integrity(path: Path) -> str:
    with path.open("rb") as file:
        return "sha512-" + base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
