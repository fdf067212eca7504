"""A search's folder: what is where in it, and who may work in it.

search.toml          the search, all defaults and the size filled in
costs.json           what parts cost on this machine
supernet/            the supernet's training run
candidates.jsonl     every candidate; what an interrupted search goes on from
pictures.safetensors what candidates are judged on, for the worker processes
finalists/           winners, exported whole and measured
retrain.toml         the recipe that trains the winners from scratch
retrain/seed-N/      its runs
pareto.json, pareto.png
report.json          everything; written last
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samespace.cloud.search.config import Search
from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_write

__all__ = ["SearchFolder"]


class SearchFolder:
    """Paths below a search's folder."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.search = self.path / "search.toml"
        self.costs = self.path / "costs.json"
        self.supernet = self.path / "supernet"
        self.candidates = self.path / "candidates.jsonl"
        self.pictures = self.path / "pictures.safetensors"
        self.finalists = self.path / "finalists"
        self.retrain_recipe = self.path / "retrain.toml"
        self.retrain = self.path / "retrain"
        self.pareto = self.path / "pareto.json"
        self.plot = self.path / "pareto.png"
        self.report = self.path / "report.json"

    @contextmanager
    def opened(self, search: Search, *, resume: bool) -> Iterator[None]:
        """Make the folder this search's, and keep other processes out while the block runs.

        Args:
            search: what it is for.
            resume: False discards what an earlier search left.

        Raises:
            ConfigError: it holds something else, or another process works in it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; a search needs a folder")
        there = [entry for entry in self.path.iterdir() if not entry.name.startswith(".")] if self.path.exists() else []
        if there and not self.search.exists():
            raise ConfigError(f"{self.path}: is not empty and holds no search; choose another folder")
        self.path.mkdir(parents=True, exist_ok=True)
        # The system takes the lock back when the process dies, however it dies.
        with open(self.path / ".lock", "w") as handle:
            try:
                import fcntl  # POSIX only; elsewhere there is no lock

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:
                pass
            except OSError:
                raise ConfigError(f"{self.path}: another process searches into this folder; wait for it, or stop it") from None
            if not resume:
                self._clear()
            atomic_write(self.search, search.to_toml())
            yield

    def _clear(self) -> None:
        # The search goes last: as long as it stands, the folder is known to be a search's.
        for path in (
            self.report,
            self.plot,
            self.pareto,
            self.retrain,
            self.retrain_recipe,
            self.finalists,
            self.candidates,
            self.pictures,
            self.supernet,
            self.costs,
            self.search,
        ):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
