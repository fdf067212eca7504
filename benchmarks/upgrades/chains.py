"""Four generations in a row, and what becomes of thresholds and of groups: by the newest embeddings of each run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cells import Cells
from paired import Figure, Resamples
from protocol import OLD
from retrieval import METRICS

from samespace.cloud.upgrades.measure import measure_chain
from samespace.cloud.upgrades.report import UpgradeReport
from samespace.sdk.metrics import average_accuracy, average_compatibility, average_precision, recall_at_k

__all__ = ["GENERATIONS", "Chain", "chain", "reports"]

GENERATIONS = 4


@dataclass(frozen=True)
class Chain:
    """Generations, each trained to follow the one before it.

    Attributes:
        matrix: metric -> row: query, column: gallery, oldest first.
        compatibility, accuracy: metric -> AC and AA of the mean matrix, with those of its resamples.
    """

    matrix: dict[str, list[list[Figure]]]
    compatibility: dict[str, Figure]
    accuracy: dict[str, Figure]


def chain(cells: Cells, method: str) -> Chain:
    """All pairs of a method's generations."""
    found = [_outcomes(cells, seed, method) for seed in cells.seeds]
    resamples = Resamples(len(found), found[0]["map"].shape[-1])
    matrix, compatibility, accuracy = {}, {}, {}
    for metric in METRICS:
        values = np.stack([one[metric] for one in found])
        places = range(GENERATIONS)
        matrix[metric] = [[resamples.figure(values[:, q, g]) for g in places] for q in places]
        drawn = np.array([[cell.draws for cell in row] for row in matrix[metric]])
        mean = np.array([[cell.value for cell in row] for row in matrix[metric]])
        for target, measure in ((compatibility, average_compatibility), (accuracy, average_accuracy)):
            draws = np.array([measure(drawn[:, :, draw]) for draw in range(drawn.shape[2])])
            target[metric] = Figure(measure(mean), draws, values.shape[-1])
    return Chain(matrix, compatibility, accuracy)


def reports(cells: Cells, method: str) -> list[UpgradeReport]:
    """The upgrade report of each repetition of the one upgrade by a method: thresholds and groups."""
    return [_report(cells, seed, method) for seed in cells.seeds]


def _outcomes(cells: Cells, seed: int, method: str) -> dict[str, npt.NDArray[np.float64]]:
    """Metric -> ``(T, T, queries)``."""

    def measure() -> dict[str, npt.NDArray[np.float64]]:
        runs = [OLD, *(f"chain-{method}-{place}" for place in range(2, GENERATIONS + 1))]
        rows = [cells.generation(seed, run, "cloud") for run in runs]
        pictures = cells.pictures(seed, OLD)
        labels = list(pictures.queries["class"]), list(pictures.gallery)
        recall = [[recall_at_k(q.query, g.gallery, *labels, k=1) for g in rows] for q in rows]
        precision = [[average_precision(q.query, g.gallery, *labels) for g in rows] for q in rows]
        return {"recall@1": np.array(recall, np.float64), "map": np.array(precision)}

    return cells.kept(seed, f"chain-{method}", measure)


def _report(cells: Cells, seed: int, method: str) -> UpgradeReport:
    kept = cells.folder / f"seed-{seed}" / f"report-{method}.json"
    if not kept.exists():
        generations = [cells.generation(seed, run, "cloud") for run in (OLD, method)]
        kept.write_text(measure_chain(generations, cells.pictures(seed, OLD)).model_dump_json())
    return UpgradeReport.model_validate_json(kept.read_bytes())
