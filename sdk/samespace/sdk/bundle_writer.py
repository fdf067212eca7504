"""Writing a bundle: all of it, or nothing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from samespace.sdk.errors import BundleError, ConfigError
from samespace.sdk.files import atomic_directory, atomic_file
from samespace.sdk.identity import ModelRecord, SpaceRecord, canonical_json, digest, utc_now
from samespace.sdk.manifest import MANIFEST_FILE, SIGNATURE_FILE, Artifact, FileEntry, Manifest, listed_id
from samespace.sdk.signing import SigningKey

__all__ = ["artifact_id", "write_bundle"]


def artifact_id(files: Mapping[str, bytes]) -> str:
    """Id of an artifact: SHA-256 of a single file (key ``""``); of the canonical list of files for a package.

    Args:
        files: path below the artifact -> bytes, as :class:`samespace.sdk.runtimes.base.LoadedArtifact` holds them.
    """
    return listed_id((path, len(data), digest(data)) for path, data in files.items())


def write_bundle(
    path: Path,
    *,
    model: ModelRecord,
    space: SpaceRecord,
    artifacts: Sequence[tuple[Artifact, Mapping[str, bytes]]],
    files: Mapping[str, bytes],
    gates: Mapping[str, Mapping[str, float]] | None = None,
    signer: SigningKey | None,
) -> Manifest:
    """Write a bundle in one step: after a crash there is the old one, or none, but never half of one.

    Args:
        path: a path that ends in ``.zip`` becomes a zip, any other a folder. A bundle that is already there is replaced.
        model: whose artifacts these are.
        space: the space that the model embeds into.
        artifacts: each entry with its files (path below the artifact -> bytes; ``""`` for a single file).
        files: everything else (``probes/…``, ``evidence.json``), by path.
        gates: limits that the check applies, per precision.
        signer: None writes an unsigned bundle, which others open with ``allow_unsigned`` only.

    Raises:
        BundleError: records, artifacts and files do not fit together, or the disk refuses.
        ConfigError: something that is no bundle is at ``path``; it is left alone.
    """
    _refuse_to_replace(path)
    content: dict[str, bytes] = {}
    for artifact, parts in artifacts:
        for name, data in parts.items():
            _put(content, f"{artifact.path}/{name}" if name else artifact.path, data)
    for name, data in files.items():
        _put(content, name, data)
    manifest = _manifest(model, space, [artifact for artifact, _ in artifacts], content, gates or {})
    manifest_bytes = _manifest_json(manifest)
    everything = {MANIFEST_FILE: manifest_bytes, **content}
    if signer is not None:
        everything[SIGNATURE_FILE] = _signature_json(manifest_bytes, signer)
    try:
        _write(path, everything)
    except zipfile.LargeZipFile:
        raise BundleError(f"{path}: too large for a zip; write a folder (a path without .zip)") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror or error}); what was there is unchanged") from None
    return manifest


def _refuse_to_replace(path: Path) -> None:
    """What is replaced is deleted: a mistyped path must not cost somebody's folder."""
    if not path.exists():
        return
    if path.suffix.lower() == ".zip":
        good = path.is_file() and (zipfile.is_zipfile(path) or not path.stat().st_size)
    else:
        good = path.is_dir() and ((path / MANIFEST_FILE).is_file() or not any(path.iterdir()))
    if not good:
        raise ConfigError(f"{path}: is there, but is no bundle, so it is not replaced; choose another path or move it away")


def _put(content: dict[str, bytes], name: str, data: bytes) -> None:
    if name in content:
        raise BundleError(f"{name!r} was given twice for one bundle")
    content[name] = data


def _manifest(
    model: ModelRecord,
    space: SpaceRecord,
    artifacts: Iterable[Artifact],
    content: Mapping[str, bytes],
    gates: Mapping[str, Mapping[str, float]],
) -> Manifest:
    try:
        return Manifest(
            created=utc_now(),
            model=model,
            model_id=model.model_id,
            space=space,
            space_id=space.space_id,
            artifacts=tuple(artifacts),
            files=tuple(FileEntry(path=name, size=len(data), sha256=digest(data)) for name, data in sorted(content.items())),
            gates={precision: dict(limits) for precision, limits in gates.items()},
        )
    except ValidationError as error:
        reasons = "; ".join(reason["msg"] for reason in error.errors(include_url=False, include_context=False))
        raise BundleError(f"cannot make a bundle of the model {model.name!r}: {reasons}") from None


def _manifest_json(manifest: Manifest) -> bytes:
    try:
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise BundleError(f"cannot write the manifest of the model {manifest.model.name!r}: {error}") from None
    return text.encode() + b"\n"


def _signature_json(manifest: bytes, signer: SigningKey) -> bytes:
    fields: dict[str, Any] = {
        "algorithm": "ed25519",
        "key_id": signer.key_id,
        "public_key": signer.public.raw.hex(),
        "signature": signer.sign(manifest).hex(),
    }
    return canonical_json(fields)


def _write(path: Path, content: Mapping[str, bytes]) -> None:
    if path.suffix.lower() == ".zip":
        with atomic_file(path) as file:
            _write_zip(file, content)
        return
    with atomic_directory(path) as folder:
        for name, data in content.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def _write_zip(file: IO[bytes], content: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", allowZip64=False) as archive:
        for name, data in sorted(content.items()):
            # A fixed date: the same content gives the same zip.
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o100644 << 16
            info.create_system = 3
            archive.writestr(info, data, compress_type=zipfile.ZIP_DEFLATED)
