"""The training log: JSON lines that a resumed run continues without a gap or a repeated step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samespace.sdk.errors import ConfigError

__all__ = ["TrainingLog", "read_log"]


class TrainingLog:
    """Appends records to ``log.jsonl``.

    Args:
        path: the file.
        keep: bytes of it to keep; what stands behind them was written after the checkpoint, and will be written again.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
        if self._file.tell() < keep:
            self._file.close()
            raise ConfigError(f"{path} is shorter than its checkpoint says; it was changed. Train into another folder")
        self._file.truncate(keep)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; a reader sees whole lines."""
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def position(self) -> int:
        """Bytes written so far, which are on disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole records of a log; a last line that was cut off by a kill is left out."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]
