"""A bundle's seal: its manifest, and the signature over the manifest's bytes."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from samespace.sdk.errors import BundleError, FormatVersionError, IntegrityError, SignatureError
from samespace.sdk.identity import canonical_json
from samespace.sdk.manifest import FORMAT_VERSION, MANIFEST_FILE, SIGNATURE_FILE, Manifest
from samespace.sdk.signing import PublicKey, TrustStore

__all__ = ["Seal", "verify_seal"]

_log = logging.getLogger(__name__)

_SIGNATURE = {"key_id": r"[0-9a-f]{16}", "public_key": r"[0-9a-f]{64}", "signature": r"[0-9a-f]{128}"}


@dataclass(frozen=True)
class Seal:
    """The bytes of ``manifest.json`` and ``signature.json``: proof, without the bundle, of what each file must hash to."""

    manifest: bytes
    signature: bytes | None


def verify_seal(
    seal: Seal, path: Path, *, trust: TrustStore | None = None, allow_unsigned: bool = False
) -> tuple[Manifest, str | None, bool]:
    """The manifest, its signer's key id, and whether that key is trusted; the signature is judged before anything is parsed.

    Args:
        path: whose seal it is, for messages. Other arguments and errors as :meth:`Bundle.open`.
    """
    signer, trusted = _judge_signature(path, seal.manifest, seal.signature, trust or TrustStore.default(), allow_unsigned)
    return _parse_manifest(path, seal.manifest), signer, trusted


def _judge_signature(
    path: Path, manifest: bytes, signature: bytes | None, trust: TrustStore, allow_unsigned: bool
) -> tuple[str | None, bool]:
    """Key id of the signer, and whether it is trusted; the manifest is nothing but bytes here."""
    if signature is None:
        if not allow_unsigned:
            raise SignatureError(
                f"{path}: nobody signed this bundle; get a signed one, or open it untrusted (allow_unsigned, --allow-unsigned)"
            )
        _log.warning("%s: unsigned bundle, opened as untrusted", path)
        return None, False
    key, value = _parse_signature(path, signature)
    if not key.verify(manifest, value):
        raise SignatureError(f"{path}: the signature does not fit manifest.json: one of them was changed; get the bundle again")
    if trust.find(key) is not None:
        return key.key_id, True
    if not allow_unsigned:
        raise SignatureError(
            f"{path}: signed by the key {key.key_id}, which is not trusted here; get its public key from the signer and run"
            " 'samespace keys trust FILE', or open it untrusted (allow_unsigned, --allow-unsigned)"
        )
    _log.warning("%s: signed by the unknown key %s, opened as untrusted", path, key.key_id)
    return key.key_id, False


def _parse_signature(path: Path, data: bytes) -> tuple[PublicKey, bytes]:
    """Public key and signature; there is one way to write them, so that no byte of the file can change unnoticed."""
    fields = _parse_json(path, SIGNATURE_FILE, data)
    good = isinstance(fields, dict) and set(fields) == {"algorithm", *_SIGNATURE} and fields["algorithm"] == "ed25519"
    good = good and all(isinstance(fields[name], str) and re.fullmatch(form, fields[name]) for name, form in _SIGNATURE.items())
    if not good or canonical_json(fields) != data:
        raise SignatureError(f"{path}: signature.json is not what samespace writes; get the bundle again")
    try:
        key = PublicKey(bytes.fromhex(fields["public_key"]))
    except SignatureError as error:
        raise SignatureError(f"{path}: signature.json: {error}") from None
    if key.key_id != fields["key_id"]:
        raise SignatureError(f"{path}: signature.json names the key {fields['key_id']}, but holds the key {key.key_id}")
    return key, bytes.fromhex(fields["signature"])


def _parse_manifest(path: Path, data: bytes) -> Manifest:
    content = _parse_json(path, MANIFEST_FILE, data)
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"{path}: manifest.json has no format_version; is this a samespace bundle?")
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{path}: written in bundle format {version}, this samespace reads up to {FORMAT_VERSION};"
            " upgrade samespace (pip install -U samespace)"
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(step) for step in first["loc"]) or "content"
        kind = IntegrityError if field.startswith("files") else BundleError
        raise kind(f"{path}: manifest.json, {field!r}: {first['msg']}; get the bundle again from who exported it") from None


def _parse_json(path: Path, name: str, data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a key is there twice")
        return fields

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {name} is broken JSON ({error}); get the bundle again") from None
