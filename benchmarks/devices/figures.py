"""What is claimed of devices, as records of the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samespace.sdk.check.matrix import Cell, Matrix
from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine

__all__ = ["Install", "records"]

_ROOT = Path(__file__).parents[2]
#: Bars: seconds of the matrix, of the install, devices and images.
_MATRIX_SECONDS, _INSTALL_SECONDS, _DEVICES, _IMAGES = 900.0, 240.0, 6, 64


@dataclass(frozen=True)
class Install:
    """An install into an empty cache, and the first check behind it.

    Attributes:
        seconds: of the install.
        check_seconds: of the check on two devices.
        failed: what it said when it failed; empty when it did not.
    """

    seconds: float
    check_seconds: float
    failed: str


def records(
    first: Matrix,
    second: Matrix,
    seconds: tuple[float, float],
    systems: Matrix | None,
    faulty: str,
    faults: Sequence[dict[str, Any]],
    install: Install | None,
    size: str,
) -> list[EvidenceRecord]:
    """All records.

    Args:
        first: the matrix.
        second: the same again, in another order.
        seconds: of each.
        systems: whole systems of processors that ``first`` has in user mode; None where there are none.
        faulty: the device that bore the faults.
        faults: of :func:`planted.planted_on`.
        install: None where it was not measured.
        size: of the benchmark.
    """
    words = "make bench NAME=devices" + ("" if size == "full" else f" SIZE={size}")
    common: dict[str, Any] = {
        "ci95": None,
        "seeds": (0,),
        "device": describe_machine(),
        "command": words,
        "commit": commit_id(_ROOT),
    }
    measured = [cell for cell in first.cells if cell.state == "measured"]
    n = min((cell.n for cell in measured if not cell.why), default=0)
    common["n"] = n
    found = [_time(first, seconds, n, common), _repeated(first, second, common), _gates(first, common)]
    found += _host(measured, common)
    if systems is not None:
        found.append(_systems(first, systems, common))
    if faults:
        wrong = [
            f"{row['fault']} in {row['artifact']}: {', '.join(row['named']) or 'nothing'}" for row in faults if not row["found"]
        ]
        found.append(
            EvidenceRecord(
                id="devices-faults",
                claim=f"each planted fault is named first when it happens on {faulty}",
                bar="all",
                measured={"named": len(faults) - len(wrong), "of": len(faults)},
                holds=not wrong,
                reason="; ".join(wrong),
                **common,
            )
        )
    if install is not None:
        found.append(
            EvidenceRecord(
                id="devices-install",
                claim="samespace devices install arm64 into an empty cache, without privileges; the check is told apart",
                bar=f"install < {_INSTALL_SECONDS:g} s",
                measured=asdict(install),
                holds=not install.failed and install.seconds < _INSTALL_SECONDS,
                reason=install.failed or ("" if install.seconds < _INSTALL_SECONDS else "it takes longer"),
                **common,
            )
        )
    return found


def _time(matrix: Matrix, seconds: tuple[float, float], n: int, common: dict[str, Any]) -> EvidenceRecord:
    used = {cell.device for cell in matrix.cells if cell.state == "measured"}
    failed = sorted({f"{cell.device}: {cell.why}" for cell in matrix.cells if cell.state == "failed"})
    reasons = [*failed]
    reasons += [] if len(used) >= _DEVICES else [f"{len(used)} devices"]
    reasons += [] if n >= _IMAGES else [f"{n} images"]
    reasons += [] if max(seconds) < _MATRIX_SECONDS else [f"{max(seconds):.0f} s"]
    return EvidenceRecord(
        id="devices-matrix-time",
        claim="the matrix of all devices and all artifacts, devices installed before",
        bar=f">= {_DEVICES} devices, >= {_IMAGES} images, < {_MATRIX_SECONDS:g} s",
        measured={
            "seconds": round(seconds[0], 1),
            "seconds again": round(seconds[1], 1),
            "devices": len(used),
            "cells": sum(cell.state == "measured" for cell in matrix.cells),
        },
        holds=not reasons,
        reason="; ".join(reasons),
        **common,
    )


def _repeated(first: Matrix, second: Matrix, common: dict[str, Any]) -> EvidenceRecord:
    one, other = first.hashes(), second.hashes()
    wrong = sorted(place for place in one.keys() | other.keys() if one.get(place) != other.get(place))
    return EvidenceRecord(
        id="devices-repeated",
        claim="two runs of the matrix give the same embeddings, bit for bit",
        bar="all hashes equal",
        measured={"equal": len(one.keys() | other.keys()) - len(wrong), "of": len(one.keys() | other.keys())},
        holds=not wrong and bool(one),
        reason=", ".join(wrong) if wrong or one else "nothing was measured",
        **common,
    )


def _gates(matrix: Matrix, common: dict[str, Any]) -> EvidenceRecord:
    """Failures; what too few probes leave open is no failure of a device. 4 bits fail on every machine, the host too."""
    judged = [cell for cell in matrix.cells if cell.state == "measured" and "palette4" not in cell.artifact]
    failed = [
        f"{cell.place}: {', '.join(cell.diagnosis) or cell.why or cell.worst_cosine}"
        for cell in judged
        if cell.outcome == "fail"
    ]
    return EvidenceRecord(
        id="devices-gates",
        claim="no artifact but 4-bit palettes fails its gate against the fp32 reference on any device",
        bar="none fails",
        measured={
            "pass": sum(cell.outcome == "pass" for cell in judged),
            "inconclusive": sum(cell.outcome == "inconclusive" for cell in judged),
            "fail": len(failed),
        },
        holds=not failed and bool(judged),
        reason="; ".join(failed) or ("" if judged else "nothing was measured"),
        **common,
    )


def _host(cells: Sequence[Cell], common: dict[str, Any]) -> list[EvidenceRecord]:
    """One record for each bar: the largest difference to the host, and for those above it who left the reference."""
    found = []
    for bar in sorted({cell.host.bar for cell in cells if cell.host is not None}):
        group = [(cell, cell.host) for cell in cells if cell.host is not None and cell.host.bar == bar]
        above = [f"{cell.place}: {host.text()}" for cell, host in group if not host.within]
        worst, host = max(group, key=lambda pair: pair[1].largest)
        precisions = sorted({cell.artifact.partition("-")[2] for cell, _ in group})
        found.append(
            EvidenceRecord(
                id=f"devices-host-{bar:g}",
                claim=f"devices agree with this host: {', '.join(precisions)}",
                bar=f"1 - cosine <= {bar:g} on every image",
                measured={"largest": host.largest, "where": worst.place, "above": len(above), "of": len(group)},
                holds=not above,
                reason="; ".join(above),
                **common,
            )
        )
    return found


def _systems(users: Matrix, systems: Matrix, common: dict[str, Any]) -> EvidenceRecord:
    """Cells of a whole system against those of the same processor in user mode."""
    mine = {
        (cell.device, cell.artifact, cell.runtime): cell.embeddings_sha256 for cell in users.cells if cell.embeddings_sha256
    }
    equal, wrong, refused = 0, [], 0
    for cell in systems.cells:
        other = mine.get((cell.device.rpartition("-")[0], cell.artifact, cell.runtime))
        if not cell.embeddings_sha256 or other is None:
            refused += cell.state != "no runtime"
        elif cell.embeddings_sha256 == other:
            equal += 1
        else:
            wrong.append(cell.place)
    return EvidenceRecord(
        id="devices-system-user",
        claim="a whole emulated system and the same processor in user mode give the same embeddings, bit for bit",
        bar="all hashes equal, of what runs in its memory",
        measured={"equal": equal, "different": len(wrong), "not run": refused},
        holds=not wrong and equal > 0,
        reason=", ".join(wrong) or ("" if equal else "no artifact ran on both"),
        **common,
    )
