"""What every query found, gathered from the folders of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from paired import Figure, Resamples
from protocol import ARCHITECTURES, CONTROL, Cell, Job

__all__ = ["Cells", "read_cells", "read_peers"]

Hits = npt.NDArray[np.floating]
#: The cloud model on both sides, in the keys below.
_CLOUD = "cloud"


@dataclass
class Cells:
    """Hits of all cells, and figures made from them.

    Attributes:
        hits: ``(split, cell, side)`` -> ``(n,)``, 1 where the first hit is right. The side is ``own`` for M(q,q), ``cross`` for
            M(q,g), ``cross@16`` for prefixes.
        paragon: ``(split, scope, seed)`` -> ``(n,)``: M(g,g). The scope ``main`` has one cloud model, under seed 0.
        added: ``(split, group, name, side)`` -> ``(seeds, n)``: peers, and what a search found.
        seeds: of the repetitions; a cell counts when it is there for all of them.
        resamples: how many.
    """

    seeds: tuple[int, ...]
    resamples: int = 4000
    hits: dict[tuple[str, Cell, str], Hits] = field(default_factory=dict)
    paragon: dict[tuple[str, str, int], Hits] = field(default_factory=dict)
    added: dict[tuple[str, str, str, str], Hits] = field(default_factory=dict)

    @cached_property
    def _resamples(self) -> dict[int, Resamples]:
        return {}

    def drawn(self, queries: int) -> Resamples:
        """The resamples of a split of so many queries, the same for all of its cells."""
        if queries not in self._resamples:
            self._resamples[queries] = Resamples(len(self.seeds), queries, self.resamples)
        return self._resamples[queries]

    def first(self, seeds: int) -> Cells:
        """The same for the first ``seeds`` repetitions alone: where not everything was repeated as often."""
        return replace(self, seeds=self.seeds[:seeds])

    def has(self, architecture: str, loss: str, side: str = "cross", scope: str = "main") -> bool:
        """Whether it is there for all seeds."""
        return all(("test", Cell(scope, architecture, loss, seed), side) in self.hits for seed in self.seeds)

    def figure(self, architecture: str, loss: str, side: str, split: str = "test", scope: str = "main") -> Figure:
        """R@1 as a share.

        Raises:
            KeyError: it was not measured for all seeds.
        """
        rows = np.stack([self.hits[split, Cell(scope, architecture, loss, seed), side] for seed in self.seeds])
        return self.drawn(rows.shape[1]).figure(rows)

    def best(self, split: str = "test", scope: str = "main") -> Figure:
        """The paragon M(g,g): of the one cloud model, or of each seed's own.

        Raises:
            KeyError: it was not measured.
        """
        if scope == "main":
            rows = self.paragon[split, scope, 0]
            return self.drawn(len(rows)).figure(rows)
        stacked = np.stack([self.paragon[split, scope, seed] for seed in self.seeds])
        return self.drawn(stacked.shape[1]).figure(stacked)

    def other(self, group: str, name: str, side: str = "cross", split: str = "test") -> Figure:
        """R@1 of something beside the protocol's cells.

        Raises:
            KeyError: it was not measured for all seeds.
        """
        rows = self.added[split, group, name, side][: len(self.seeds)]
        if len(rows) < len(self.seeds):
            raise KeyError(name)
        return self.drawn(rows.shape[1]).figure(rows)

    def others(self, group: str) -> list[str]:
        """Names of what a group holds on the test classes, for all seeds."""
        there = [key for key, rows in self.added.items() if key[:2] == ("test", group) and len(rows) >= len(self.seeds)]
        return list(dict.fromkeys(name for _, _, name, _ in there))

    def architectures(self, loss: str = CONTROL) -> list[str]:
        """Those of the protocol that were trained with a loss, for all seeds."""
        return [name for name in ARCHITECTURES if self.has(name, loss)]

    @property
    def known(self) -> list[Cell]:
        """Every cell that was measured on the test classes."""
        return list(dict.fromkeys(cell for split, cell, side in self.hits if split == "test" and side == "cross"))


def read_cells(folder: Path, jobs: Sequence[Job], seeds: tuple[int, ...]) -> Cells:
    """Read every finished run among the jobs.

    Args:
        folder: that holds the folder ``runs``.
        jobs: of the protocol; those without results are left out.
        seeds: of the repetitions.
    """
    cells = Cells(seeds)
    for job in jobs:
        file = folder / "runs" / job.name / "queries.safetensors"
        if job.recipe is None or not file.exists() or not (file.parent / "matrices.json").exists():
            continue
        found = safetensors.numpy.load_file(file)
        for split in ("validation", "test"):
            if job.name == "cloud":
                cells.paragon[split, "main", 0] = found[f"{split}/cloud->cloud"]
                continue
            for name, cell in job.cells.items():
                if name == _CLOUD:
                    cells.paragon[split, cell.scope, cell.seed] = found[f"{split}/cloud->cloud"]
                for key, values in found.items():
                    if key == f"{split}/{name}->{name}":
                        cells.hits[split, cell, "own"] = values
                    if key.startswith(f"{split}/{name}->cloud") and not key.endswith("/ap"):
                        cells.hits[split, cell, "cross" + key.removeprefix(f"{split}/{name}->cloud")] = values
    return cells


def read_peers(folder: Path, cells: Cells) -> None:
    """Add the peers' hits, of the first seeds that are there: group ``peers``."""
    files = [folder / "runs" / f"peers-seed{seed}" / "queries.safetensors" for seed in cells.seeds]
    done = list(takewhile(lambda file: (file.parent / "done.json").exists(), files))
    found = [safetensors.numpy.load_file(file) for file in done]
    for key in found[0] if found else ():
        split, _, rest = key.partition("/")
        cells.added[split, "peers", rest.removesuffix("->cloud"), "cross"] = np.stack([one[key] for one in found])
