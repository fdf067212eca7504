"""What successors find in the old gallery: one upgrade across a quality gap, by every method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cells import Cells
from paired import Figure, Resamples
from protocol import METHODS, WIDER

__all__ = ["METRICS", "Step", "chance", "independent", "steps"]

METRICS = ("recall@1", "map")


@dataclass(frozen=True)
class Step:
    """An upgrade, by metric.

    Attributes:
        old: M(o, o).
        across: M(n, o).
        new: M(n, n).
        free: M(n*, n*) of the same network, trained without regard to the old model.
    """

    old: dict[str, Figure]
    across: dict[str, Figure]
    new: dict[str, Figure]
    free: dict[str, Figure]

    def gain(self, metric: str) -> Figure:
        """How much of what a backfill with n* would give is there without one."""
        return (self.across[metric] - self.old[metric]) / (self.free[metric] - self.old[metric])

    def tax(self, metric: str) -> Figure:
        """What compatibility costs the new model."""
        return self.free[metric] - self.new[metric]


def steps(cells: Cells) -> dict[str, Step]:
    """The one upgrade by every method."""
    control = _figures(cells, "bct", "control", "control")
    return {
        name: Step(
            _figures(cells, name, "old", "old"),
            _figures(cells, name, "cloud", "old"),
            _figures(cells, name, "cloud", "cloud"),
            control,
        )
        for name in (*METHODS, WIDER)
    }


def independent(cells: Cells) -> dict[str, Figure]:
    """M(n*, o) by metric: the old gallery searched by a model that knows nothing of it."""
    return _figures(cells, "bct", "control", "old")


def chance(cells: Cells) -> float:
    """R@1 of a guess: the mean share of the gallery that is of a query's class."""
    pictures = cells.pictures(cells.seeds[0], "bct")
    gallery = np.asarray(pictures.gallery)
    return float(np.mean([(gallery == name).mean() for name in pictures.queries["class"]]))


def _figures(cells: Cells, run: str, query: str, gallery: str) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for metric in METRICS:
        values = cells.found(run, query, gallery, metric=metric)
        found[metric] = Resamples(*values.shape).figure(values)
    return found
