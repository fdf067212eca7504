"""The demo's table: who finds what, on classes that no model saw in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samespace.sdk.metrics import Estimate, average_precision, bootstrap_mean, paired_bootstrap, recall_at_k

__all__ = ["Row", "Side", "Table", "milliseconds_per_image"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """One encoder's embeddings of the test images.

    Attributes:
        query: ``(n, d)`` unit-norm float32.
        gallery: ``(m, d)``, or None where only its queries are of interest.
        rows: which of the test queries were embedded; None for all.
    """

    query: Floats
    gallery: Floats | None = None
    rows: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table; recalls and mAP are fractions with their 95 % interval."""

    group: str
    name: str
    recall1: Estimate
    recall5: Estimate
    map: Estimate
    parameters: str
    macs: str
    file: str
    milliseconds: str

    @property
    def n(self) -> int:
        return self.recall1.n


@dataclass
class Table:
    """Collects rows, and keeps each row's per-query hits so that two rows can be compared query by query."""

    query_labels: Sequence[str]
    gallery_labels: Sequence[str]
    seed: int = 0
    rows: list[Row] = field(default_factory=list)
    _hits: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = field(default_factory=dict)

    def add(self, group: str, name: str, side: Side, gallery: Floats, **cost: str) -> Row:
        """Search ``gallery`` with the side's queries and add the row."""
        rows = np.arange(len(self.query_labels)) if side.rows is None else side.rows
        labels = [self.query_labels[int(row)] for row in rows]
        hits = recall_at_k(side.query, gallery, labels, self.gallery_labels, 1)
        columns = {"parameters": "", "macs": "", "file": "", "milliseconds": ""} | cost
        row = Row(
            group,
            name,
            bootstrap_mean(hits, seed=self.seed),
            bootstrap_mean(recall_at_k(side.query, gallery, labels, self.gallery_labels, 5), seed=self.seed),
            bootstrap_mean(average_precision(side.query, gallery, labels, self.gallery_labels), seed=self.seed),
            **columns,
        )
        self.rows.append(row)
        self._hits[name] = (rows, hits)
        return row

    def difference(self, name: str, other: str) -> Estimate:
        """R@1 of one row minus another's, paired by query, on the queries that both rows have."""
        rows, hits = self._hits[name]
        other_rows, other_hits = self._hits[other]
        _, left, right = np.intersect1d(rows, other_rows, return_indices=True)
        return paired_bootstrap(hits[left], other_hits[right], seed=self.seed)

    def groups(self) -> list[tuple[str, list[Row]]]:
        """Rows by group, both in the order in which they were added."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return list(found.items())

    def markdown(self) -> str:
        """The table for a terminal or a README."""
        lines = [
            "| query → gallery | R@1 % [95 %] | R@5 % [95 %] | mAP % [95 %] | n | parameters | MACs | file | ms / image |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            scores = f"{row.recall1.text()} | {row.recall5.text()} | {row.map.text()} | {row.n}"
            lines.append(f"| {row.name} | {scores} | {row.parameters} | {row.macs} | {row.file} | {row.milliseconds} |")
        return "\n".join(lines) + "\n"


def milliseconds_per_image(
    embed: Callable[[npt.NDArray[np.uint8]], object], images: npt.NDArray[np.uint8], rounds: int = 30
) -> str:
    """Median time of embedding one preprocessed image, batch 1, after a warm-up."""
    embed(images[:1])
    times = []
    for index in range(rounds):
        image = images[index % len(images)][None]
        start = time.perf_counter()
        embed(image)
        times.append(time.perf_counter() - start)
    return f"{1000 * float(np.median(times)):.2f}"
