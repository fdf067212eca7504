"""``candidates.jsonl``: what was found out about candidates, appended as it is found; a resumed search goes on from it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from samespace.edge.search import Architecture
from samespace.sdk.errors import ConfigError

__all__ = ["Candidate", "Memo"]


class Candidate(BaseModel):
    """One architecture, what it costs and what it is worth on validation classes; a share (0-1) where nothing else is said.

    Attributes:
        key: of the architecture.
        architecture: what it is.
        macs: multiply-accumulates of one picture.
        params: parameters.
        latency_ms: predicted from the table of parts.
        file_bytes: predicted likewise.
        m_qq: recall@1 with the candidate on both sides.
        m_qg: recall@1 of its queries in the cloud model's gallery.
        negative_flips: queries that the cloud model answers right and the candidate wrong.
        relative_negative_flips: that over what independent errors would give (1).
        seconds: that the evaluation took.
        error: why there is no result; None when it went well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["candidate"] = "candidate"
    key: str
    architecture: Architecture
    macs: int
    params: int
    latency_ms: float
    file_bytes: int
    m_qq: float = 0.0
    m_qg: float = 0.0
    negative_flips: float = 0.0
    relative_negative_flips: float = 0.0
    seconds: float = 0.0
    error: str | None = None


class Memo:
    """The file and what stands in it.

    Args:
        path: made when it is not there. A last line that was cut off by a kill is dropped.
        belongs_to: digest of all that the values depend on.

    Raises:
        ConfigError: it belongs to another search.
    """

    def __init__(self, path: Path, belongs_to: str) -> None:
        self.path = path
        self.candidates: dict[str, Candidate] = {}
        self.proxies: dict[str, float | None] = {}
        self.evaluated, self.seconds = 0, 0.0
        self._lock = threading.Lock()
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines and lines[0].get("belongs_to") != belongs_to:
            raise ConfigError(
                f"{path}: holds candidates of another search (other run, space, supernet or evaluation); search into another "
                "folder, or start over with --no-resume"
            )
        for line in lines[1:]:
            self._take(line)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
        self._file.truncate(len(whole))
        if not lines:
            self._append({"kind": "header", "belongs_to": belongs_to})

    def add(self, candidate: Candidate) -> None:
        """Keep a candidate; it is on disk when this returns."""
        self._keep(candidate.model_dump(mode="json"))

    def add_proxy(self, key: str, value: float | None, error: str | None = None) -> None:
        """Keep an architecture's proxy; None with the error where it has none."""
        self._keep({"kind": "proxy", "key": key, "value": value, **({"error": error} if error else {})})

    def add_time(self, candidates: int, seconds: float) -> None:
        """Note that so many candidates were evaluated in so many seconds of wall time."""
        self._keep({"kind": "time", "candidates": candidates, "seconds": round(seconds, 3)})

    @property
    def per_minute(self) -> float:
        """Candidates evaluated a minute, over all sittings."""
        return 60 * self.evaluated / self.seconds if self.seconds else 0.0

    def close(self) -> None:
        self._file.close()

    def _keep(self, line: dict[str, Any]) -> None:
        with self._lock:
            self._take(line)
            self._append(line)

    def _take(self, line: dict[str, Any]) -> None:
        if line["kind"] == "candidate":
            found = Candidate.model_validate_json(json.dumps(line))
            self.candidates[found.key] = found
        elif line["kind"] == "proxy":
            self.proxies[line["key"]] = line["value"]
        elif line["kind"] == "time":
            self.evaluated += line["candidates"]
            self.seconds += line["seconds"]

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
