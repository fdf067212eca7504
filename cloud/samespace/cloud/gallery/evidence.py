"""From a bundle's signed evidence to a compatibility record: the gallery measures for itself, it does not take a claim.

A bundle carries, for the same probe images, what its own model makes of them and what the cloud model does
(``probes/reference.safetensors``), and what known mistakes would give (``probes/mistakes.safetensors``). Both files are
listed in the signed manifest, so a few hundred kilobytes prove how well the two models' vectors can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from samespace.cloud.gallery.registry import RegisteredArtifact, RegisteredModel
from samespace.sdk.bundle import Seal, verify_seal
from samespace.sdk.errors import BundleError, IntegrityError, SamespaceError
from samespace.sdk.gallery.wire import PROOF_FILES, BundleProof
from samespace.sdk.identity import CompatibilityRecord, digest
from samespace.sdk.manifest import Manifest
from samespace.sdk.metrics import bootstrap_mean
from samespace.sdk.metrics.arrays import checked_embeddings
from samespace.sdk.signing import TrustStore

__all__ = ["MIN_SEPARATION", "Evidence", "measured_record", "own_separation", "registered_model", "verified_evidence"]

#: Where the line is drawn between comparable and not. 0.5 is chance, 1 is perfect; models that were trained alone stay
#: near 0.5.
MIN_SEPARATION = 0.8
_REFERENCE, _MISTAKES, _LEDGER = PROOF_FILES
#: Of a request body; a bundle's probes stay far below it.
_MAX_FILE = 64 << 20


class Evidence:
    """A proof whose signature and digests hold.

    Attributes:
        manifest: of the bundle.
        signer: key id, or None for an unsigned bundle that the operator allowed.
        own: ``(n, d)`` the model's own embeddings of the probes; cloud: ``(n, d)`` the founder's.
        mistakes: name -> ``(m, d)`` what a known mistake would give for the first m <= n probes.
        measured: what the bundle was gated with when it was exported, as it says.
    """

    def __init__(self, manifest: Manifest, signer: str | None, files: Mapping[str, bytes]) -> None:
        self.manifest = manifest
        self.signer = signer
        reference = _tensors(files, _REFERENCE)
        if missing := {"model", "cloud"} - reference.keys():
            raise BundleError(f"{_REFERENCE}: no tensor {sorted(missing)[0]!r} in it; export the bundle again with probes")
        dim = manifest.model.dim
        self.own = _embeddings("model", reference["model"], dim)
        self.cloud = _embeddings("cloud", reference["cloud"], dim)
        if len(self.own) != len(self.cloud):
            raise BundleError(f"{_REFERENCE}: 'model' has {len(self.own)} rows, 'cloud' has {len(self.cloud)}; export again")
        mistakes = _tensors(files, _MISTAKES) if _MISTAKES in files else {}
        self.mistakes = {
            name: rows
            for name, rows in mistakes.items()
            # Of the first probes, perhaps; pairs ("a+b") are for a diagnosis that has more than one number.
            if "+" not in name and rows.ndim == 2 and 0 < len(rows) <= len(self.own) and rows.shape[1] == self.own.shape[1]
            if np.isfinite(rows).all()
        }
        self.measured = _ledger(files.get(_LEDGER, b"[]"))


def verified_evidence(proof: BundleProof, trust: TrustStore, *, allow_unsigned: bool = False) -> Evidence:
    """Judge signature and digests, and only then parse.

    Raises:
        SignatureError: unsigned, or signed by a key that is not in ``trust``.
        IntegrityError: a file is not the one that the manifest lists.
        BundleError: what is signed cannot be used.
    """
    seal = Seal(proof.manifest, proof.signature)
    manifest, signer, _ = verify_seal(seal, Path("introduced bundle"), trust=trust, allow_unsigned=allow_unsigned)
    listed = {entry.path: entry for entry in manifest.files}
    for path in PROOF_FILES:
        if path in listed and path not in proof.files:
            raise IntegrityError(f"{path}: is listed in the manifest, but was not sent; send {', '.join(PROOF_FILES)}")
    for path, data in proof.files.items():
        if path not in listed or path not in PROOF_FILES:
            raise IntegrityError(f"{path!r} does not belong to the proof; send only {', '.join(PROOF_FILES)}")
        if len(data) > _MAX_FILE or digest(data) != listed[path].sha256:
            raise IntegrityError(f"{path} is not the file that the manifest lists (SHA-256 differs); get the bundle again")
    return Evidence(manifest, signer, proof.files)


def registered_model(manifest: Manifest, signer: str | None) -> RegisteredModel:
    """What the registry keeps of a manifest."""
    artifacts = tuple(
        RegisteredArtifact(artifact_id=artifact.artifact_id, format=artifact.format, precision=artifact.precision)
        for artifact in manifest.artifacts
    )
    return RegisteredModel(
        record=manifest.model, space_id=manifest.space_id, artifacts=artifacts, gates=manifest.gates, signer=signer
    )


def measured_record(evidence: Evidence) -> CompatibilityRecord:
    """How well the model's queries and the founder's vectors can be compared.

    *Separation* is the share of other pictures that a picture's own cloud embedding beats (the area under the ROC
    curve, per query). Its 95 % interval above :data:`MIN_SEPARATION` passes, below fails, across is inconclusive.
    """
    separation = bootstrap_mean(own_separation(evidence.own, evidence.cloud))
    verdict = "pass" if separation.low >= MIN_SEPARATION else "fail" if separation.high < MIN_SEPARATION else "inconclusive"
    cosines = _paired_cosines(evidence.own, evidence.cloud)
    report: dict[str, Any] = {
        "n": len(cosines),
        "cosine": {**_summary(cosines), "p1": float(np.percentile(cosines, 1)), "min": float(cosines.min())},
        "separation": {"value": separation.value, "low": separation.low, "high": separation.high, "bar": MIN_SEPARATION},
        "mistakes": {
            name: _summary(_paired_cosines(rows, evidence.cloud[: len(rows)]))
            for name, rows in sorted(evidence.mistakes.items())
        },
        "evidence": evidence.measured,
    }
    manifest = evidence.manifest
    return CompatibilityRecord(
        query_id=manifest.model_id,
        gallery_model_id=manifest.space.founder_model_id,
        space_id=manifest.space_id,
        verdict=verdict,
        report=report,
        # The evidence is as old as its bundle; so introducing a bundle twice gives one record.
        measured_at=manifest.created,
    )


def own_separation(own: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """For each of the n >= 2 pictures, the share of the other pictures that its own pair is nearer than; ties count half."""
    scores = own.astype(np.float64) @ other.astype(np.float64).T
    genuine = np.diag(scores)[:, None]
    # The picture itself is a tie, counted half, and taken away again.
    beaten = (scores < genuine).sum(axis=1) + 0.5 * (scores == genuine).sum(axis=1) - 0.5
    return beaten / (len(own) - 1)


def _paired_cosines(rows: npt.NDArray[np.floating], cloud: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    norms = np.maximum(np.linalg.norm(wide, axis=1), 1e-12)
    return np.einsum("ij,ij->i", wide, cloud.astype(np.float64)) / norms


def _summary(cosines: npt.NDArray[np.float64]) -> dict[str, float]:
    return {"mean": float(cosines.mean()), "std": float(cosines.std())}


def _embeddings(name: str, rows: npt.NDArray[Any], dim: int) -> npt.NDArray[np.float32]:
    try:
        checked = checked_embeddings(f"{_REFERENCE}: {name!r}", rows)
    except SamespaceError as error:
        raise BundleError(f"{error}; export the bundle again") from None
    if checked.shape[1] != dim or len(checked) < 2:
        raise BundleError(
            f"{_REFERENCE}: {name!r} has shape {checked.shape}, expected at least two rows of {dim}; export again"
        )
    return checked


def _tensors(files: Mapping[str, bytes], path: str) -> dict[str, npt.NDArray[Any]]:
    if path not in files:
        raise BundleError(f"the bundle has no {path}, so its model cannot be judged; export it again with probes")
    try:
        return load(files[path])
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: not a safetensors file that can be read ({error})") from None


def _ledger(data: bytes) -> list[Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        content = json.loads(data, parse_constant=refuse)
    except ValueError as error:
        raise BundleError(f"{_LEDGER}: broken JSON ({error}); export the bundle again") from None
    return content if isinstance(content, list) else [content]
