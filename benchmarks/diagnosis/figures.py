"""From outcomes to records of the ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine

if TYPE_CHECKING:
    from run import Outcome

__all__ = ["records", "wilson"]

#: Id -> what it claims, least share that holds, kinds and modes of the cases that it counts.
_CLAIMS: dict[str, tuple[str, float, tuple[str, ...], tuple[str, ...]]] = {
    "single-mistakes": ("a single mistake is named first, by embeddings alone", 0.95, ("single",), ("live",)),
    "single-mistakes-not-run-here": (
        "a single mistake is named first although the int8 artifact does not run where it is diagnosed",
        0.95,
        ("single",),
        ("stored",),
    ),
    "single-mistakes-with-tensors": (
        "a single mistake is named first when the app's tensors are there, too (int8)",
        0.95,
        ("single",),
        ("tensors",),
    ),
    "pairs": ("both of two mistakes are among the first three causes, by embeddings alone", 0.95, ("pair",), ("live",)),
    "pairs-with-tensors": ("the same with the app's tensors (int8)", 0.95, ("pair",), ("tensors",)),
    "unknown": ("a mistake without a fingerprint is called unknown", 0.95, ("unknown",), ("live", "stored")),
    "model-faults": (
        "other revisions, overflow, saturation and misread FULLY_CONNECTED are named first",
        0.95,
        ("model",),
        ("live",),
    ),
    "healthy": ("a healthy artifact is never accused", 1.0, ("healthy",), ("live", "stored", "tensors")),
}


def records(outcomes: Sequence[Outcome], command: str, root: Path, seed: int) -> list[EvidenceRecord]:
    """One record of each claim that has cases, with the share of every cause and precision."""
    device, commit = describe_machine(), commit_id(root)
    made = []
    for name, (claim, bar, kinds, modes) in _CLAIMS.items():
        counted = [outcome for outcome in outcomes if outcome.kind in kinds and outcome.mode in modes]
        if not counted:
            continue
        right = sum(outcome.right for outcome in counted)
        share, n = right / len(counted), len(counted)
        holds = share >= bar
        made.append(
            EvidenceRecord(
                id=f"diagnosis-{name}",
                claim=claim,
                bar=f"share right >= {bar:g}",
                measured={"share right": share, "wrong": n - right, **_by_part(counted)},
                ci95=wilson(right, n),
                n=n,
                seeds=(seed,),
                holds=holds,
                reason="" if holds else f"{n - right} of {n} cases are wrong; the ledger lists them under 'missed'",
                device=device,
                command=command,
                commit=commit,
            )
        )
    return made


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson, 1927)."""
    share, scale = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def _by_part(outcomes: Sequence[Outcome]) -> dict[str, float]:
    shares: dict[str, list[bool]] = {}
    for outcome in outcomes:
        shares.setdefault(outcome.precision, []).append(outcome.right)
        if outcome.kind in ("single", "model"):
            shares.setdefault(" or ".join(outcome.expected), []).append(outcome.right)
        elif outcome.kind == "unknown":
            shares.setdefault(outcome.planted, []).append(outcome.right)
    return {name: sum(right) / len(right) for name, right in sorted(shares.items())}
