"""What an upgrade changes: plain numbers, JSON both ways, judged again by any bars (:mod:`samespace.cloud.upgrades.verdict`).

A report holds no verdict. What each query found is kept, so that another bar may ask for another margin, slice or budget.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from samespace.sdk.errors import ConfigError, FormatVersionError
from samespace.sdk.metrics import Estimate, ScoreMap

__all__ = [
    "REPORT_VERSION",
    "Cell",
    "Control",
    "Found",
    "GenerationRecord",
    "GroupTransfer",
    "Metric",
    "Outcomes",
    "ThresholdTransfer",
    "UpgradeReport",
    "read_report",
]

#: Version of reports that this samespace writes; it reads this one and all older ones.
REPORT_VERSION = 1

Metric = Literal["recall@1", "map"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GenerationRecord(_Part):
    """One model of the chain, oldest first in a report."""

    name: str
    model_id: str
    dim: int = Field(ge=1)


class Cell(_Part):
    """M(query, gallery) of two generations, by their places in the chain; a share (0-1) with its 95 % interval over queries."""

    query: int = Field(ge=0)
    gallery: int = Field(ge=0)
    recall1: Estimate
    map: Estimate

    def of(self, metric: Metric) -> Estimate:
        return self.recall1 if metric == "recall@1" else self.map


class Control(_Part):
    """The newest model trained without a compatibility term: what it could be, and that it finds nothing in the old gallery.

    Attributes:
        own: M(n*, n*).
        old: M(n*, o).
    """

    model_id: str
    own: Cell
    old: Cell


class Found(_Part):
    """What each query found with one pair of models."""

    recall1: tuple[Literal[0, 1], ...]
    map: tuple[float, ...]

    def of(self, metric: Metric) -> npt.NDArray[np.float64]:
        """``(n,)`` float64 in [0, 1]."""
        return np.asarray(self.recall1 if metric == "recall@1" else self.map, np.float64)


class Outcomes(_Part):
    """What each query found before the upgrade, after it, and after a backfill.

    Attributes:
        queries: field (key, class, source, quality) -> one value a query.
        old: M(o, o).
        new: M(n, o): new queries, the gallery as it is.
        backfilled: M(n, n).
        across: M(o, n): old queries, what the new model embedded; None in older reports.
    """

    queries: dict[str, tuple[str, ...]]
    old: Found
    new: Found
    backfilled: Found
    across: Found | None = None

    @model_validator(mode="after")
    def _one_of_each_query(self) -> Outcomes:
        n = len(self.old.recall1)
        parts = [part for part in (self.old, self.new, self.backfilled, self.across) if part is not None]
        found = [values for part in parts for values in (part.recall1, part.map)]
        if not n or any(len(values) != n for values in [*found, *self.queries.values()]):
            raise ValueError("all outcomes and all fields must have one value a query, of at least one query")
        return self


class ThresholdTransfer(_Part):
    """What happens to a threshold that an app has built in, e.g. "these two are the same".

    Attributes:
        far: false accept rate that the threshold was chosen for.
        threshold: the old one: M(o, o) at ``far``.
        tar_old, far_old: accepted shares of the pairs that belong together, and that do not, before the upgrade.
        tar_new, far_new: the same threshold with new queries and the old gallery.
        advised: the threshold that gives ``far`` again.
        tar_advised: accepted share of the pairs that belong together at it.
    """

    far: float
    threshold: float
    tar_old: Estimate
    far_old: Estimate
    tar_new: Estimate
    far_new: Estimate
    advised: float
    tar_advised: Estimate


class GroupTransfer(_Part):
    """Whether groups (of photos of one thing) that were formed yesterday are still right.

    Attributes:
        items: gallery pictures that were grouped.
        threshold: mean cosine at which groups are joined, by old and new model alike.
        agreement: adjusted Rand index of yesterday's groups and those that the new model forms by the same rule.
        truth_old, truth_new: of either with the classes.
        rule_error_old, rule_error_new: share of new photos that the rule (to the nearest of yesterday's groups at or above
            the threshold, else to none) puts wrong, by old and new queries.
    """

    items: int
    groups_old: int
    groups_new: int
    threshold: float
    agreement: float
    truth_old: float
    truth_new: float
    rule_error_old: Estimate
    rule_error_new: Estimate


class UpgradeReport(_Part):
    """An upgrade, or a chain of them, measured.

    Attributes:
        generations: oldest first; the last two are what is judged.
        matrix: every pair, in the order of query, then gallery.
        compatibility: AC by metric.
        accuracy: AA by metric.
        gain: update gain by metric; empty without a control.
        tax: compatibility tax by metric; empty without a control.
        merge: how hits among old and new embeddings of one gallery are put into one ranking: new queries' scores of old items
            (``new``), or old queries' scores of new items (``old``), on the scale of their scores of the other items.
        gallery: pictures searched.
        reproduce: command that measures it again.
    """

    version: int = REPORT_VERSION
    samespace: str
    generations: tuple[GenerationRecord, ...] = Field(min_length=2)
    matrix: tuple[Cell, ...]
    compatibility: dict[Metric, float]
    accuracy: dict[Metric, float]
    control: Control | None = None
    gain: dict[Metric, float] = {}
    tax: dict[Metric, float] = {}
    outcomes: Outcomes
    thresholds: ThresholdTransfer | None = None
    groups: GroupTransfer | None = None
    merge: dict[Literal["new", "old"], ScoreMap] = {}
    gallery: int
    reproduce: str = ""

    @property
    def old(self) -> GenerationRecord:
        """The model that serves now."""
        return self.generations[-2]

    @property
    def new(self) -> GenerationRecord:
        """Its successor."""
        return self.generations[-1]

    def cell(self, query: int, gallery: int) -> Cell:
        """M of two generations by place; negative places count from the newest.

        Raises:
            KeyError: there is no such pair.
        """
        t = len(self.generations)
        wanted = (query % t, gallery % t)
        return {(cell.query, cell.gallery): cell for cell in self.matrix}[wanted]

    def table(self, metric: Metric) -> Sequence[Sequence[float]]:
        """``(T, T)`` values, row: query, column: gallery."""
        places = range(len(self.generations))
        return [[self.cell(query, gallery).of(metric).value for gallery in places] for query in places]


def read_report(data: bytes, name: str = "the report") -> UpgradeReport:
    """The report in JSON bytes: what ``samespace report --json`` wrote, or the report alone.

    Raises:
        FormatVersionError: a newer samespace wrote it.
        ConfigError: it is no upgrade report.
    """
    try:
        content = json.loads(data)
        content = content.get("report", content) if isinstance(content, dict) else content
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > REPORT_VERSION:
            raise FormatVersionError(f"{name}: is of version {version}; install a newer samespace to read it")
        return UpgradeReport.model_validate(content, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise ConfigError(f"{name}: is no upgrade report: {where}: {first['msg']}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: is no upgrade report: broken JSON: {error}") from None
