"""What a bundle knows about devices: how its artifacts did on each, and which are disabled there, with the reason.

The records lie in ``evidence.json`` beside all other evidence, under the bundle's signature. ``samespace check --disable``
writes them, and :class:`samespace.sdk.embedder.Embedder` obeys them where it knows on which device it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samespace.sdk.bundle import Bundle
from samespace.sdk.bundle_writer import write_bundle
from samespace.sdk.errors import BundleError, ConfigError
from samespace.sdk.identity import canonical_json
from samespace.sdk.signing import SigningKey, key_path

if TYPE_CHECKING:
    from samespace.sdk.check.matrix import Cell

__all__ = ["DeviceEvidence", "device_evidence", "device_here", "disabled_on", "signer_for", "write_device_evidence"]

_FILE = "evidence.json"
#: Evidence is some hundred records; what is larger is no evidence.
_MOST_BYTES = 64 << 20


class DeviceEvidence(BaseModel):
    """How one artifact did in one runtime on one device."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    kind: Literal["device"] = "device"
    device: str
    artifact: str = Field(description="name")
    artifact_id: str = Field(description="SHA-256: another artifact of the same name is another matter")
    runtime: str
    runtime_version: str = ""
    outcome: Literal["pass", "fail", "inconclusive"]
    worst_cosine: float | None = None
    overlap: float | None = None
    recall: float | None = Field(default=None, description="M(q, g)")
    n: int = 0
    embeddings_sha256: str = ""
    disabled: str = Field(default="", description="why it is not to be used there; empty where it may be")


def device_here() -> str:
    """The device that this process runs on, as ``SAMESPACE_DEVICE`` names it; empty when nothing says so."""
    return os.environ.get("SAMESPACE_DEVICE", "").strip()


def device_evidence(bundle: Bundle) -> tuple[DeviceEvidence, ...]:
    """The records of a bundle about devices; none in a bundle that was never checked on one.

    Raises:
        BundleError: the evidence is damaged, although its bytes are the signed ones.
    """
    found = []
    for record in _evidence(bundle):
        if isinstance(record, dict) and record.get("kind") == "device":
            try:
                found.append(DeviceEvidence.model_validate(record))
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                field = ".".join(map(str, first["loc"]))
                raise BundleError(f"{bundle.path}: {_FILE}, a record of a device: {field}: {first['msg']}") from None
    ids = {spec.name: spec.artifact_id for spec in bundle.artifacts}
    return tuple(record for record in found if ids.get(record.artifact) == record.artifact_id)


def signer_for(path: Path, key: Path | None = None, *, allow_unsigned: bool = False) -> SigningKey | None:
    """Who will sign a bundle again that is written with other evidence; None for one that nobody signed.

    Raises:
        BundleError: the bundle cannot be opened.
        ConfigError: a stranger signed it, which signing again would hide; or there is no key.
    """
    bundle = Bundle.open(path, allow_unsigned=allow_unsigned)
    if bundle.signer is None:
        return None
    if not bundle.trusted:
        raise ConfigError(
            f"{path}: signed by {bundle.signer}, which is not trusted here; to sign it again would vouch for it: trust the "
            "signer first (samespace keys trust FILE)"
        )
    if key is None and not key_path().exists():
        raise ConfigError(f"no key to sign {path} with: make one with 'samespace keys new default', or name one with --key")
    return SigningKey.load(key)


def write_device_evidence(
    path: Path, cells: Sequence[Cell], signer: SigningKey | None, *, allow_unsigned: bool = False
) -> list[str]:
    """Put measured cells into a bundle's evidence and write it again, all or nothing; what fails is disabled.

    A cell that passes takes back what an earlier one disabled. Cells that were not measured change nothing.

    Args:
        path: of the bundle.
        cells: of a :class:`~samespace.sdk.check.matrix.Matrix`.
        signer: of :func:`signer_for`.
        allow_unsigned: open a bundle that nobody signed.

    Returns:
        What is disabled now, in lines.

    Raises:
        BundleError: the bundle cannot be read or written; it is unchanged.
    """
    bundle = Bundle.open(path, allow_unsigned=allow_unsigned)
    known = {(record.device, record.artifact, record.runtime): record for record in device_evidence(bundle)}
    for cell in cells:
        if cell.state == "measured":
            known[cell.device, cell.artifact, cell.runtime] = _record(bundle, cell)
    others = [record for record in _evidence(bundle) if not (isinstance(record, dict) and record.get("kind") == "device")]
    records = [known[at].model_dump(mode="json") for at in sorted(known)]
    manifest = bundle.manifest
    own = {entry.path for spec in manifest.artifacts for entry in manifest.files_of(spec)}
    files = {entry.path: bundle.read(entry.path) for entry in manifest.files if entry.path not in own}
    write_bundle(
        path,
        model=manifest.model,
        space=manifest.space,
        artifacts=[(spec, bundle.artifact(spec.path).files) for spec in manifest.artifacts],
        files=files | {_FILE: canonical_json([*others, *records])},
        gates=manifest.gates,
        signer=signer,
    )
    disabled = [record for _, record in sorted(known.items()) if record.disabled]
    lines = [f"disabled on {one.device}: {one.artifact} in {one.runtime}: {one.disabled}" for one in disabled]
    return [*lines, f"wrote {path} ({len(known)} records of devices, {len(disabled)} disabled)"]


def disabled_on(records: Iterable[DeviceEvidence], device: str) -> dict[tuple[str, str], str]:
    """``(artifact name, runtime)`` -> why it is disabled on a device."""
    return {(one.artifact, one.runtime): one.disabled for one in records if one.device == device and one.disabled}


def _record(bundle: Bundle, cell: Cell) -> DeviceEvidence:
    assert cell.outcome is not None
    return DeviceEvidence(
        device=cell.device,
        artifact=cell.artifact,
        artifact_id=bundle.artifact(cell.artifact).spec.artifact_id,
        runtime=cell.runtime,
        runtime_version=cell.runtime_version,
        outcome=cell.outcome,
        worst_cosine=cell.worst_cosine,
        overlap=cell.overlap,
        recall=cell.recall,
        n=cell.n,
        embeddings_sha256=cell.embeddings_sha256,
        disabled=_reason(cell) if cell.outcome == "fail" else "",
    )


def _reason(cell: Cell) -> str:
    """In one line, for who never sees the report."""
    if cell.why:
        return cell.why
    causes = f" ({', '.join(cell.diagnosis)})" if cell.diagnosis else ""
    cosine = "" if cell.worst_cosine is None else f": worst-1 % cosine to the reference {cell.worst_cosine:.6f}"
    kept = "" if cell.overlap is None else f", {100 * cell.overlap:.1f} % of the neighbours kept"
    return f"failed its check{causes}{cosine}{kept}"


def _evidence(bundle: Bundle) -> list[Any]:
    entry = next((entry for entry in bundle.manifest.files if entry.path == _FILE), None)
    if entry is None:
        return []
    try:
        if entry.size > _MOST_BYTES:
            raise ValueError(f"{entry.size} bytes")
        content = json.loads(bundle.read(_FILE))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{bundle.path}: {_FILE} cannot be read ({error}); get the bundle again") from None
    if not isinstance(content, list):
        raise BundleError(f"{bundle.path}: {_FILE} is no list of records; get the bundle again")
    return content
