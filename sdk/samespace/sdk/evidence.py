"""The evidence ledger: every figure that a document may quote is a record in a JSON file that a command wrote.

A claim that failed stays in the ledger with ``holds: false`` and its reason.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_write

__all__ = ["EvidenceRecord", "commit_id", "describe_machine", "markdown_table", "measured_text", "read_ledger", "write_ledger"]


class EvidenceRecord(BaseModel):
    """One claim, its bar, what was measured, and how to measure it again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    claim: str
    bar: str
    measured: float | dict[str, Any]
    ci95: tuple[float, float] | None
    n: int
    seeds: tuple[int, ...]
    holds: bool
    reason: str = ""
    device: str
    command: str
    commit: str

    @model_validator(mode="after")
    def _failure_has_a_reason(self) -> EvidenceRecord:
        if not self.holds and not self.reason:
            raise ValueError(f"record {self.id!r} does not hold: say why in 'reason'")
        return self


def commit_id(folder: Path) -> str:
    """The commit that ``folder`` stands at, with ``+`` behind it when files are changed; ``unknown`` outside a checkout."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def describe_machine() -> str:
    """Processor, cores, operating system and Python, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
        widest = next((flag for flag in ("avx512_vnni", "avx512f", "avx2") if flag in flags), "")
        model = " ".join(filter(None, [names[0] if names else model, widest]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def write_ledger(path: Path, records: Sequence[EvidenceRecord], **more: Any) -> None:
    """Write ``{"records": [...], **more}`` atomically.

    Raises:
        ConfigError: two records share an id.
    """
    ids = [record.id for record in records]
    if len(set(ids)) != len(ids):
        raise ConfigError(f"{path}: record ids must differ, got {ids}")
    content = {"records": [record.model_dump(mode="json") for record in records], **more}
    atomic_write(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_ledger(path: Path) -> tuple[EvidenceRecord, ...]:
    """Read a ledger that :func:`write_ledger` wrote.

    Raises:
        ConfigError: the file is missing or is no ledger.
    """
    try:
        content = json.loads(path.read_text())
        return tuple(EvidenceRecord.model_validate(record) for record in content["records"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a ledger that can be read ({error}); run its benchmark again") from None


def markdown_table(records: Sequence[EvidenceRecord]) -> str:
    """The records as a Markdown table, for the documents that quote them; a record of other seeds than the first says which."""
    lines = ["| id | claim | bar | measured | n | holds |", "|---|---|---|---|---|---|"]
    for record in records:
        holds = "yes" if record.holds else f"**no**: {record.reason}"
        n = str(record.n)
        if record.seeds != records[0].seeds:
            n += f", seed {', '.join(map(str, record.seeds))}"
        lines.append(f"| {record.id} | {record.claim} | {record.bar} | {measured_text(record)} | {n} | {holds} |")
    return "\n".join(lines) + "\n"


def measured_text(record: EvidenceRecord) -> str:
    """What was measured, in words; the interval is that of the first value."""
    values = record.measured if isinstance(record.measured, dict) else {"": record.measured}
    words = [f"{name} {_number(value)}".strip() for name, value in values.items()]
    if record.ci95:
        words[0] += f" [{_number(record.ci95[0])}, {_number(record.ci95[1])}]"
    return ", ".join(words)


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    # A cosine differs from 1 far behind the point.
    return f"{value:.7f}" if 0.99 < value < 1 else f"{value:.4g}"
