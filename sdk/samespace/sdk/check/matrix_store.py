"""Cells that an unfinished check of many devices has measured: a run that was interrupted goes on from them.

They lie in the user's cache folder (``SAMESPACE_CACHE_DIR`` overrides it), one file a cell, each written atomically. A run that
ends well removes its own, so that no finished run answers for a later one.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.device_process import Measured, Task
from samespace.sdk.check.report import CompatibilityReport
from samespace.sdk.check.searched import is_url
from samespace.sdk.errors import SamespaceError
from samespace.sdk.files import atomic_write
from samespace.sdk.identity import canonical_json, digest

__all__ = ["CellStore"]

#: Seconds after which a cell is measured again: devices are installed anew and upgraded.
_OLDEST = 24 * 3600.0


class CellStore:
    """Finished cells of one task. Reading and writing never fail a check: what cannot be read is measured, what cannot be
    written is lost when the run is interrupted.

    Args:
        task: what is checked; another bundle, gallery or setting has other cells.
        bundle: the same, opened.
        fresh: forget what there is.
    """

    def __init__(self, task: Task, bundle: Bundle, *, fresh: bool = False) -> None:
        self._folder: Path | None = None
        # What a service holds may change from one minute to the next.
        if not is_url(task.gallery):
            gallery = "" if task.gallery is None else digest(Path(task.gallery).read_bytes())
            identity = [digest(bundle.seal.manifest), bundle.trusted, gallery, task.settings.model_dump(mode="json")]
            folder = Path(os.environ.get("SAMESPACE_CACHE_DIR") or platformdirs.user_cache_dir("samespace"))
            self._folder = folder / "checks" / digest(canonical_json(identity))[:24]
        if fresh:
            self.clear()

    def get(self, device: str, artifact: str, runtime: str) -> Measured | None:
        """A finished cell, or None."""
        path = self._path(device, artifact, runtime)
        if path is None:
            return None
        try:
            if time.time() - path.stat().st_mtime > _OLDEST:
                return None
            with np.load(path, allow_pickle=False) as content:
                report = CompatibilityReport.parse(content["report"].tobytes(), str(path))
                rows = content["embeddings"] if "embeddings" in content.files else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, SamespaceError):
            return None
        return Measured(report, rows)

    def put(self, device: str, artifact: str, runtime: str, measured: Measured) -> None:
        """Keep a cell."""
        path = self._path(device, artifact, runtime)
        if path is None:
            return
        buffer = io.BytesIO()
        arrays: dict[str, npt.NDArray[Any]] = {"report": np.frombuffer(measured.report.model_dump_json().encode(), np.uint8)}
        if measured.embeddings is not None:
            arrays["embeddings"] = measured.embeddings
        np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType] - numpy's stub takes the names for its option
        with contextlib.suppress(OSError):
            atomic_write(path, buffer.getvalue(), mode=0o600)

    def clear(self) -> None:
        """Forget all cells of this task."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, *key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{digest(canonical_json(list(key)))[:24]}.npz"
