"""The matrix of a check on many devices: one cell for each device, artifact and runtime, and beside it the host's difference.

Cells are judged by the gate against the fp32 reference, as everywhere. How far a device is from this machine is told beside it
and judged by nothing: where the two differ by more than kernels explain, the cell says which of them left the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from samespace.sdk.check.gate import Gate, Outcome, Verdict, worst_outcome
from samespace.sdk.check.report import CompatibilityReport
from samespace.sdk.identity import digest
from samespace.sdk.manifest import Artifact
from samespace.sdk.probes import ProbeSet

__all__ = [
    "Cell",
    "HostDifference",
    "Matrix",
    "counted",
    "embeddings_hash",
    "host_bar",
    "host_difference",
    "judged_cell",
    "missing_cell",
]

State = Literal["measured", "no runtime", "failed"]

#: One side is further from the reference than the other by this factor before it is blamed.
_BLAMED = 2.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HostDifference(_Part):
    """A device's embeddings against this machine's of the same artifact."""

    runtime: str = Field(description="on this machine; another than the device's where it has not the same")
    largest: float = Field(description="1 - cosine of the probe image that differs most")
    probe: int = Field(ge=0, description="that image")
    bar: float = Field(description="what kernels of the same precision explain")
    device_error: float = Field(description="1 - cosine to the fp32 reference of the device at that image")
    host_error: float = Field(description="and of this machine")

    @property
    def within(self) -> bool:
        """Whether it is what kernels of the same precision explain."""
        return self.largest <= self.bar

    @property
    def left(self) -> Literal["", "device", "host", "both"]:
        """Who left the reference where the two differ by more than the bar."""
        if self.within:
            return ""
        if self.device_error > _BLAMED * self.host_error:
            return "device"
        return "host" if self.host_error > _BLAMED * self.device_error else "both"

    def text(self) -> str:
        """``2.1e-03 (above 1e-05; this host left the reference: 2.0e-03, the device 1.1e-06)``."""
        if self.within:
            return f"{self.largest:.1e}"
        here, there = f"{self.host_error:.1e}", f"{self.device_error:.1e}"
        why = {
            "device": f"the device left the reference: {there}, this host {here}",
            "host": f"this host left the reference: {here}, the device {there}",
            "both": f"neither is nearer to the reference: device {there}, this host {here}",
        }[self.left or "both"]
        return f"{self.largest:.1e} (above {self.bar:g}; {why})"


class Cell(_Part):
    """One artifact in one runtime on one device."""

    device: str
    artifact: str
    runtime: str = Field(description="empty where the device has none")
    state: State = Field(description="failed: the device, not the artifact")
    why: str = Field(default="", description="it is not measured, or refused")
    outcome: Outcome | None = Field(default=None, description="of the verdict; None: not measured")
    worst_cosine: float | None = Field(default=None, description="worst-1 % cosine to the fp32 reference")
    overlap: float | None = Field(default=None, description="share of the nearest neighbours kept")
    recall: float | None = Field(default=None, description="M(q, g): recall@1 of the device's queries in the cloud's gallery")
    recall_difference: float | None = Field(default=None, description="less the reference's")
    n: int = Field(default=0, description="probe images")
    runtime_version: str = ""
    embeddings_sha256: str = Field(default="", description="of the embeddings as they came; two runs can be compared by it")
    host: HostDifference | None = None
    diagnosis: tuple[str, ...] = Field(default=(), description="names of causes, best first")
    check: int | None = Field(default=None, description="which of the reports beside the matrix tells all about it")

    @property
    def place(self) -> str:
        """``onnx-fp32 in onnx on a53``."""
        return f"{self.artifact} in {self.runtime} on {self.device}" if self.runtime else f"{self.artifact} on {self.device}"


class Matrix(_Part):
    """All cells, by artifact in the bundle's order and by device in the user's."""

    bundle: str
    model: str
    model_id: str
    devices: tuple[str, ...]
    artifacts: tuple[str, ...]
    cells: tuple[Cell, ...]
    host_failed: str = Field(default="", description="why there is no difference to this machine; empty when there is")

    @property
    def outcome(self) -> Outcome:
        """The worst of all; a device that failed fails, and one on which nothing was measured leaves it open."""
        outcomes: list[Outcome] = [cell.outcome for cell in self.cells if cell.outcome is not None]
        if any(cell.state == "failed" for cell in self.cells):
            outcomes.append("fail")
        if self.empty:
            outcomes.append("inconclusive")
        return worst_outcome(outcomes)

    @property
    def empty(self) -> tuple[str, ...]:
        """Devices that have no runtime for any of the artifacts."""
        return tuple(
            name for name in self.devices if all(cell.state == "no runtime" for cell in self.cells if cell.device == name)
        )

    def hashes(self) -> dict[str, str]:
        """Place -> hash of the embeddings, of what was measured."""
        return {cell.place: cell.embeddings_sha256 for cell in self.cells if cell.embeddings_sha256}


def judged_cell(
    report: CompatibilityReport, embeddings: npt.NDArray[np.float32] | None, limits: Mapping[str, float]
) -> tuple[Cell, Gate, Verdict]:
    """The cell of a report, by its own gate with other ``limits``."""
    gate = Gate.of(report).replaced(**limits)
    verdict = gate.judge(report)
    retrieval = report.retrieval
    recall = None if retrieval is None else retrieval.recall.get(1)
    cell = Cell(
        device=report.device,
        artifact=report.artifact,
        runtime=report.runtime,
        state="measured",
        why=report.refused,
        outcome=verdict.outcome,
        worst_cosine=None if report.embedding is None else report.embedding.worst_cosine,
        overlap=None if retrieval is None else retrieval.overlap.value,
        recall=None if recall is None else recall.device.value,
        recall_difference=None if recall is None else recall.difference.value,
        n=0 if report.embedding is None else report.embedding.n,
        runtime_version=report.runtime_version,
        embeddings_sha256="" if embeddings is None else embeddings_hash(embeddings),
        diagnosis=tuple(suspect.name for suspect in report.diagnosis or ()),
    )
    return cell, gate, verdict


def missing_cell(device: str, artifact: str, runtime: str, state: State, why: str) -> Cell:
    """A cell that was not measured."""
    return Cell(device=device, artifact=artifact, runtime=runtime, state=state, why=why)


def embeddings_hash(embeddings: npt.NDArray[np.float32]) -> str:
    """SHA-256 of ``(n, d)`` little-endian float32."""
    return digest(np.ascontiguousarray(embeddings, "<f4").tobytes())


def host_bar(spec: Artifact) -> float:
    """The largest 1 - cosine between two healthy machines that kernels of this artifact explain.

    fp32, and fp16 weights that are widened before they are used: 1e-6. Static int8: 1e-5. fp16 arithmetic, palettes (which
    Core ML computes in fp16) and int8 with ranges as they come: 5e-4.
    """
    if spec.precision == "fp32" or (spec.precision == "fp16" and spec.format == "tflite"):
        return 1e-6
    if spec.precision == "int8" and spec.format != "coreml":
        return 1e-5
    return 5e-4


def host_difference(
    device: npt.NDArray[np.float32], host: npt.NDArray[np.float32], probes: ProbeSet, spec: Artifact, runtime: str
) -> HostDifference | None:
    """How far ``(n, d)`` embeddings of a device are from this machine's; None where either is no embedding."""
    if device.shape != host.shape or device.shape != probes.reference.shape:
        return None
    if not (np.isfinite(device).all() and np.isfinite(host).all()):
        return None
    apart = _distance(device, host)
    probe = int(np.argmax(apart))
    there, here = (float(_distance(rows[probe : probe + 1], probes.reference[probe : probe + 1])[0]) for rows in (device, host))
    return HostDifference(
        runtime=runtime, largest=float(apart[probe]), probe=probe, bar=host_bar(spec), device_error=there, host_error=here
    )


def _distance(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """1 - cosine of each row, without the cancellation that 1 - dot would have; 1 for a row of zeros."""
    first, second = (rows.astype(np.float64) for rows in (a, b))
    first, second = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in (first, second))
    apart = first - second
    return 0.5 * np.einsum("ij,ij->i", apart, apart)


def counted(cells: Sequence[Cell]) -> str:
    """``5 of 6 cells passed, 1 device failed``: for the last line."""
    passed = sum(cell.outcome == "pass" for cell in cells)
    measured = sum(cell.state == "measured" for cell in cells)
    failed = len({cell.device for cell in cells if cell.state == "failed"})
    text = f"{passed} of {measured} checks passed"
    return text + (f", {failed} device{'' if failed == 1 else 's'} failed" if failed else "")
