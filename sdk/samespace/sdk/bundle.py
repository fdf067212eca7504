"""Bundles: a model with its artifacts, probes and evidence, safe to open when it comes from a stranger.

A bundle is a folder, or a zip of its content::

    manifest.json    what this is, and every other file with its size and SHA-256 (:mod:`samespace.sdk.manifest`)
    signature.json   Ed25519 over the bytes of manifest.json
    artifacts/ probes/ evidence.json

:meth:`Bundle.open` checks, in this order: that there are plain files only; the signature over the bytes of the manifest; the
format version; that exactly the listed files are there; size and SHA-256 of every file. Only then does it hand out bytes, and
hashes them again when it does: the bytes that were hashed are the bytes that a parser sees. No pickle, ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from samespace.sdk.bundle_source import Source, open_source
from samespace.sdk.bundle_writer import artifact_id, write_bundle
from samespace.sdk.errors import BundleError, ConfigError, IntegrityError
from samespace.sdk.manifest import MANIFEST_FILE, SIGNATURE_FILE, Artifact, FileEntry, Manifest
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.seal import Seal, verify_seal
from samespace.sdk.signing import TrustStore

__all__ = ["Bundle", "Seal", "artifact_id", "verify_seal", "write_bundle"]

#: A manifest of the most files that a bundle may have stays below it.
_MAX_MANIFEST = 8 << 20
_MAX_SIGNATURE = 4096


class Bundle:
    """An opened bundle; every byte that it hands out was verified.

    Attributes:
        path: as it was given.
        manifest: what the bundle says about itself.
        signer: id of the key that signed it, or None when it is unsigned.
        trusted: whether that key is in the trust store. If not, run its artifacts through :mod:`samespace.sdk.isolation`.
        seal: the manifest and its signature as bytes, for who has to be convinced (a gallery).
    """

    def __init__(self, path: Path, source: Source, manifest: Manifest, signer: str | None, trusted: bool, seal: Seal) -> None:
        self.path = path
        self.manifest = manifest
        self.signer = signer
        self.trusted = trusted
        self.seal = seal
        self._source = source
        self._entries = {entry.path: entry for entry in manifest.files}

    @classmethod
    def open(cls, path: Path | str, *, trust: TrustStore | None = None, allow_unsigned: bool = False) -> Bundle:
        """Verify a whole bundle.

        Args:
            path: a folder, or a zip of its content.
            trust: whose signatures count; None takes :meth:`TrustStore.default`.
            allow_unsigned: open a bundle that nobody signed, or whose signer is unknown (logged as a warning). A signature that
                does not fit is refused all the same.

        Raises:
            BundleError: there is no bundle, or its manifest says something impossible.
            IntegrityError: a file is missing, extra, linked, escaping or changed.
            SignatureError: unsigned, unknown signer, or a signature that does not fit the manifest.
            FormatVersionError: written by a newer samespace.
        """
        path = Path(path)
        source = open_source(path)
        files, folders = source.names()
        if MANIFEST_FILE not in files:
            raise IntegrityError(_no_manifest(path, files))
        manifest_bytes = source.read(MANIFEST_FILE, _MAX_MANIFEST)
        signature = source.read(SIGNATURE_FILE, _MAX_SIGNATURE) if SIGNATURE_FILE in files else None
        seal = Seal(manifest_bytes, signature)
        manifest, signer, trusted = verify_seal(seal, path, trust=trust, allow_unsigned=allow_unsigned)
        unlisted = {MANIFEST_FILE} if signature is None else {MANIFEST_FILE, SIGNATURE_FILE}
        _judge_files(path, {entry.path for entry in manifest.files} | unlisted, files, folders)
        for entry in manifest.files:
            _judge_content(path, source, entry)
        return cls(path, source, manifest, signer, trusted, seal)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The exported files of the model."""
        return self.manifest.artifacts

    def artifact(self, name: str) -> LoadedArtifact:
        """One artifact with its verified bytes.

        Args:
            name: ``onnx-fp32``; a path as in the manifest; or a format (``onnx``), if it has one artifact.

        Raises:
            ConfigError: none or several are meant; the message lists what there is.
            IntegrityError: a file was changed since the bundle was opened.
        """
        found = [artifact for artifact in self.artifacts if name in (artifact.name, artifact.path)]
        found = found or [artifact for artifact in self.artifacts if name == artifact.format]
        if len(found) != 1:
            there = ", ".join(f"{artifact.name} ({artifact.path})" for artifact in self.artifacts) or "none"
            problem = "does not say which artifact" if found else "is no artifact"
            raise ConfigError(f"{name!r} {problem} of {self.path}; there is: {there}")
        spec = found[0]
        files = {entry.path[len(spec.path) + 1 :]: self.read(entry.path) for entry in self.manifest.files_of(spec)}
        return LoadedArtifact(spec, files, size=self.manifest.model.preprocess.size, dim=self.manifest.model.dim)

    def read(self, path: str) -> bytes:
        """The verified bytes of one listed file.

        Raises:
            BundleError: the manifest lists no such file.
            IntegrityError: the file was changed since the bundle was opened.
        """
        entry = self._entries.get(path)
        if entry is None:
            raise BundleError(f"{self.path}: the bundle has no file {path!r}; export it again with this version of samespace")
        data = b"".join(self._source.chunks(path, entry.size))
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise IntegrityError(_changed(self.path, entry))
        return data

    def files_below(self, prefix: str) -> dict[str, bytes]:
        """All listed files of the folder ``prefix`` with their verified bytes, by their full path in the bundle, sorted."""
        folder = prefix.rstrip("/") + "/"
        return {name: self.read(name) for name in sorted(self._entries) if name.startswith(folder)}

    def __repr__(self) -> str:
        signed = f"signed by {self.signer}" if self.signer else "unsigned"
        return f"<Bundle {self.path} {self.manifest.model_id} {signed}{'' if self.trusted else ', not trusted'}>"


def _judge_files(path: Path, listed: set[str], files: frozenset[str], folders: frozenset[str]) -> None:
    if missing := listed - files:
        raise IntegrityError(f"{path}: missing: {_some(missing)}; get the bundle again")
    parents = {name[:at] for name in listed for at, letter in enumerate(name) if letter == "/"}
    if extra := (files - listed) | (folders - parents):
        raise IntegrityError(f"{path}: not listed in the manifest: {_some(extra)}; remove what does not belong to the bundle")


def _judge_content(path: Path, source: Source, entry: FileEntry) -> None:
    hasher = hashlib.sha256()
    for chunk in source.chunks(entry.path, entry.size):
        hasher.update(chunk)
    if hasher.hexdigest() != entry.sha256:
        raise IntegrityError(_changed(path, entry))


def _changed(path: Path, entry: FileEntry) -> str:
    return f"{path}: {entry.path} was changed (its SHA-256 is not the manifest's); get the bundle again"


def _no_manifest(path: Path, files: frozenset[str]) -> str:
    nested = [name for name in files if name.endswith("/" + MANIFEST_FILE) and name.count("/") == 1]
    hint = f"zip the content of {nested[0].split('/')[0]!r}, not the folder" if nested else "is this a samespace bundle?"
    return f"{path}: has no {MANIFEST_FILE}; {hint}"


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(repr(name) for name in found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
