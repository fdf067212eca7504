"""Measuring a chain of model generations on the same queries and gallery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import numpy.typing as npt

from samespace.cloud.upgrades.report import (
    Cell,
    Control,
    Found,
    GenerationRecord,
    Metric,
    Outcomes,
    ThresholdTransfer,
    UpgradeReport,
)
from samespace.cloud.upgrades.transfer import FAR, group_transfer, threshold_transfer
from samespace.sdk.errors import DataError
from samespace.sdk.metrics import (
    ScoreMap,
    average_accuracy,
    average_compatibility,
    average_precision,
    bootstrap_mean,
    compatibility_tax,
    fit_score_map,
    pair_scores,
    recall_at_k,
    update_gain,
)
from samespace.sdk.prefix import comparable

__all__ = ["Compare", "Generation", "Pictures", "as_they_are", "measure_chain"]

METRICS: tuple[Metric, ...] = ("recall@1", "map")


Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Generation:
    """What one model makes of the pictures.

    Attributes:
        query: ``(n, d)`` unit-norm float32.
        gallery: ``(m, d)`` unit-norm float32.
    """

    name: str
    model_id: str
    query: Rows
    gallery: Rows


#: Queries of the first, gallery of the second, as rows of one width.
Compare = Callable[[Generation, Generation], tuple[Rows, Rows]]


@dataclass(frozen=True)
class Pictures:
    """What is known of them.

    Attributes:
        queries: field -> one value a query; ``class`` must be among them.
        gallery: class of each gallery picture.
    """

    queries: Mapping[str, Sequence[str]]
    gallery: Sequence[str]


def as_they_are(query: Generation, gallery: Generation) -> tuple[Rows, Rows]:
    """Without an adapter: on the first coordinates that both have."""
    return comparable(query.query, gallery.gallery)


def measure_chain(
    generations: Sequence[Generation],
    pictures: Pictures,
    control: Generation | None = None,
    reproduce: str = "",
    compare: Compare = as_they_are,
) -> UpgradeReport:
    """All that a report says; the last two generations are the upgrade.

    Args:
        generations: oldest first, at least two.
        control: the newest model trained without a compatibility term.
        reproduce: command that measures it again.
        compare: how queries of one generation are compared with the gallery of another; adapters come in here.

    Raises:
        DataError: fewer than two generations, or embeddings that do not belong to the pictures.
    """
    if len(generations) < 2:
        raise DataError("an upgrade needs two models, the old one and the new one")
    cells, found = [], {}
    for q, query in enumerate(generations):
        for g, gallery in enumerate(generations):
            cell, found[q, g] = _measured(q, g, compare(query, gallery), pictures)
            cells.append(cell)
    last = len(generations) - 1
    before, after = generations[-2], generations[-1]
    report = UpgradeReport(
        samespace=version("samespace"),
        generations=tuple(
            GenerationRecord(name=one.name, model_id=one.model_id, dim=one.query.shape[1]) for one in generations
        ),
        matrix=tuple(cells),
        compatibility={},
        accuracy={},
        outcomes=Outcomes(
            queries={field: tuple(values) for field, values in pictures.queries.items()},
            old=found[last - 1, last - 1],
            new=found[last, last - 1],
            backfilled=found[last, last],
            across=found[last - 1, last],
        ),
        gallery=len(pictures.gallery),
        reproduce=reproduce,
    )
    tables: dict[Metric, npt.NDArray[np.float64]] = {metric: np.asarray(report.table(metric)) for metric in METRICS}
    same, across = compare(before, before), compare(after, before)
    thresholds = _thresholds(same, across, pictures)
    more = {
        "compatibility": {metric: average_compatibility(table) for metric, table in tables.items()},
        "accuracy": {metric: average_accuracy(table) for metric, table in tables.items()},
        "thresholds": thresholds,
        "merge": _merge(before, after, compare, pictures),
    }
    if thresholds is not None and len(pictures.gallery) > 1:
        labels = pictures.queries["class"], pictures.gallery
        more["groups"] = group_transfer(same, across, after.gallery, *labels, thresholds.threshold)
    if control is not None:
        own, _ = _measured(last, last, as_they_are(control, control), pictures)
        old, _ = _measured(last, last - 1, as_they_are(control, before), pictures)
        more["control"] = Control(model_id=control.model_id, own=own, old=old)
        gains = {metric: update_gain(table[-2, -2], table[-1, -2], own.of(metric).value) for metric, table in tables.items()}
        more["gain"] = {metric: gain for metric, gain in gains.items() if gain is not None}
        more["tax"] = {metric: compatibility_tax(own.of(metric).value, table[-1, -1]) for metric, table in tables.items()}
    return report.model_copy(update=more)


def _measured(q: int, g: int, rows: tuple[Rows, Rows], pictures: Pictures) -> tuple[Cell, Found]:
    sides = (*rows, list(pictures.queries["class"]), list(pictures.gallery))
    first, precision = recall_at_k(*sides, k=1), average_precision(*sides)
    cell = Cell(query=q, gallery=g, recall1=bootstrap_mean(first), map=bootstrap_mean(precision))
    # Six digits tell any two rankings of a real gallery apart, and halve the file.
    outcome = Found(recall1=tuple(int(one) for one in first), map=tuple(round(float(one), 6) for one in precision))  # type: ignore[arg-type]
    return cell, outcome


def _merge(
    before: Generation, after: Generation, compare: Compare, pictures: Pictures
) -> dict[Literal["new", "old"], ScoreMap]:
    """Without a side whose scores tell nothing: there is no sensible order then."""

    def scores(query: Generation, gallery: Generation) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        found, genuine = pair_scores(*compare(query, gallery), list(pictures.queries["class"]), list(pictures.gallery))
        return found[genuine], found[~genuine]

    maps: dict[Literal["new", "old"], ScoreMap] = {}
    with suppress(DataError):
        maps["new"] = fit_score_map(*scores(after, before), *scores(after, after))
    with suppress(DataError):
        maps["old"] = fit_score_map(*scores(before, after), *scores(before, before))
    return maps


def _thresholds(same: tuple[Rows, Rows], across: tuple[Rows, Rows], pictures: Pictures) -> ThresholdTransfer | None:
    """None where the pictures are too few for the rate."""
    try:
        return threshold_transfer(same, across, pictures.queries["class"], pictures.gallery, FAR)
    except DataError as error:
        if "impostor" not in str(error):
            raise
        return None
