"""Whether an upgrade may go live: a report judged by bars. Used by ``samespace report`` and by a gallery before it promotes.

Each finding is a test at the stated confidence with three outcomes: clear of its bar passes, beyond it fails, across it is
inconclusive, with the number of queries that would decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samespace.cloud.upgrades.report import Metric, Outcomes, UpgradeReport
from samespace.sdk.check.chance import queries_needed
from samespace.sdk.check.gate import EXIT_CODES, Outcome, reasons_of, worst_outcome
from samespace.sdk.errors import ConfigError
from samespace.sdk.metrics import Estimate, bootstrap_mean, negative_flips, relative_negative_flip_rate

__all__ = ["SLICED", "Bars", "Finding", "Flips", "Slice", "Verdict", "judge", "judge_old_queries"]

#: Fields that the queries are sliced by.
SLICED = ("class", "source", "quality")

Check = Literal["compatible", "slices", "flips", "never", "far"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Bars(_Part):
    """What an upgrade must not do. Rates are 0-1, so a margin of half a point is 0.005."""

    metric: Metric = "map"
    margin: float = Field(default=0.005, ge=0, le=1, description="how far M(n,o) may fall below M(o,o)")
    slice_drop: float = Field(default=0.05, ge=0, le=1, description="how far M(n,o) may fall below M(o,o) in any slice")
    slice_least: int = Field(default=20, ge=2, description="smaller slices are shown, and decide nothing")
    flips: float = Field(default=0.05, ge=0, description="negative flip rate of the first hit, times what each costs")
    costs: dict[str, float] = Field(default_factory=dict, description="class, or key of one query -> cost; all else costs 1")
    never: tuple[str, ...] = Field(default=(), description="classes or keys of queries of which none may flip")
    far_ratio: float | None = Field(default=None, gt=0, description="FAR at the old threshold, times the old; None: not judged")
    confidence: float = Field(default=0.95, gt=0, lt=1)
    n_boot: int = Field(default=4000, ge=100)
    seed: int = 0

    @classmethod
    def of(cls, **values: object) -> Self:
        """Bars with these values, checked.

        Raises:
            ConfigError: an unknown bar, or one out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(f"bar {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}") from None


class Finding(_Part):
    """One thing that was judged."""

    check: Check
    outcome: Outcome
    message: str


class Slice(_Part):
    """Some of the queries: M(n, o) less M(o, o) of them, with an interval that holds for all slices of the field at once."""

    field: str
    value: str
    old: float
    difference: Estimate
    flips: float
    outcome: Outcome | None = Field(description="None: too few queries to decide anything")


class Flips(_Part):
    """Negative flips of the first hit, old queries to new ones, in the gallery as it is.

    Attributes:
        rate: share of the queries (NFR), each weighed with its cost.
        relative: NFR / ((1 - ER_old) * ER_new), without costs.
        positive: share of the queries that became right.
        queries: places of those that flipped.
    """

    rate: Estimate
    relative: float
    positive: float
    queries: tuple[int, ...]


class Verdict(_Part):
    """What bars say of a report."""

    outcome: Outcome
    findings: tuple[Finding, ...]
    difference: Estimate
    flips: Flips
    slices: tuple[Slice, ...]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.outcome]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Messages of all that did not pass, failures first."""
        return reasons_of(self.findings)


def judge(report: UpgradeReport, bars: Bars | None = None) -> Verdict:
    """Judge the step from the last but one generation to the last, with new queries in the old gallery.

    Raises:
        ConfigError: costs or a never-flip set that name neither a class nor a query of the report.
    """
    bars = bars or Bars()
    outcomes = report.outcomes
    _known(outcomes, bars)
    each = outcomes.new.of(bars.metric) - outcomes.old.of(bars.metric)
    difference = bootstrap_mean(each, bars.n_boot, bars.seed, bars.confidence)
    flips = _flips(outcomes, bars)
    slices = _slices(outcomes, each, bars)
    findings = [_compatible(each, difference, bars), _sliced(slices, bars), _budget(flips, outcomes, bars)]
    if bars.never:
        findings.append(_never(flips, outcomes, bars))
    if bars.far_ratio is not None:
        findings.append(_far(report, bars.far_ratio))
    return Verdict(
        outcome=worst_outcome([finding.outcome for finding in findings]),
        findings=tuple(findings),
        difference=difference,
        flips=flips,
        slices=slices,
    )


def judge_old_queries(report: UpgradeReport, bars: Bars | None = None) -> Finding:
    """Judge what devices that keep the old model find among embeddings by the new one: M(o, n) against M(o, o).

    Raises:
        ConfigError: a report that an older samespace wrote.
    """
    bars, outcomes = bars or Bars(), report.outcomes
    if outcomes.across is None:
        raise ConfigError("this upgrade report does not say what old queries find among new embeddings; measure it again")
    each = outcomes.across.of(bars.metric) - outcomes.old.of(bars.metric)
    difference = bootstrap_mean(each, bars.n_boot, bars.seed, bars.confidence)
    text = f"M(o,n) - M(o,o) in {bars.metric}: {difference.text()} points (n={difference.n}), margin {100 * bars.margin:g}"
    outcome: Outcome = (
        "pass" if difference.low >= -bars.margin else "fail" if difference.high < -bars.margin else "inconclusive"
    )
    return Finding(check="compatible", outcome=outcome, message=text)


def _compatible(each: npt.NDArray[np.float64], difference: Estimate, bars: Bars) -> Finding:
    text = f"M(n,o) - M(o,o) in {bars.metric}: {difference.text()} points (n={difference.n}), margin {100 * bars.margin:g}"
    if difference.low >= -bars.margin:
        return Finding(check="compatible", outcome="pass", message=text)
    if difference.high < -bars.margin:
        message = f"{text}: new queries find less in the old gallery than old ones; it needs a backfill, an adapter or training"
        return Finding(check="compatible", outcome="fail", message=message)
    count = queries_needed(each, -bars.margin, bars.confidence)
    message = f"{text}: the interval is across the margin; {count} queries would decide"
    return Finding(check="compatible", outcome="inconclusive", message=message)


def _slices(outcomes: Outcomes, each: npt.NDArray[np.float64], bars: Bars) -> tuple[Slice, ...]:
    old, flipped = outcomes.old.of(bars.metric), negative_flips(outcomes.old.recall1, outcomes.new.recall1)
    found = []
    for field in SLICED:
        values = np.asarray(outcomes.queries.get(field, ()), np.str_)
        names, counts = np.unique(values, return_counts=True)
        if len(names) < 2:
            continue
        judged = max(1, int((counts >= bars.slice_least).sum()))
        # Bonferroni: one of a hundred classes falls by chance at 95 % each.
        confidence = 1 - (1 - bars.confidence) / judged
        rounds = max(bars.n_boot, 20 * judged * 2)
        for name, count in zip(names, counts, strict=True):
            rows = values == name
            difference = bootstrap_mean(each[rows], rounds, bars.seed, confidence)
            enough = count >= bars.slice_least
            outcome: Outcome = "fail" if difference.high < -bars.slice_drop else "pass"
            found.append(
                Slice(
                    field=field,
                    value=str(name),
                    old=float(old[rows].mean()),
                    difference=difference,
                    flips=float(flipped[rows].mean()),
                    outcome=outcome if enough else None,
                )
            )
    return tuple(found)


def _sliced(slices: Sequence[Slice], bars: Bars) -> Finding:
    judged = [one for one in slices if one.outcome is not None]
    fallen = sorted((one for one in judged if one.outcome == "fail"), key=lambda one: one.difference.value)
    if slices and not judged:
        message = f"no slice has {bars.slice_least} queries or more, so none was judged; collect more, or lower slice_least"
        return Finding(check="slices", outcome="inconclusive", message=message)
    limit = f"by more than {100 * bars.slice_drop:g} points with {100 * bars.confidence:g} % confidence"
    if not fallen:
        message = f"no slice of {len(judged)} with {bars.slice_least} queries or more falls {limit}"
        return Finding(check="slices", outcome="pass", message=message)
    named = "; ".join(f"{one.field} {one.value!r} {one.difference.text()} (n={one.difference.n})" for one in fallen[:5])
    more = f" and {len(fallen) - 5} more" if len(fallen) > 5 else ""
    return Finding(check="slices", outcome="fail", message=f"{len(fallen)} of {len(judged)} slices fall {limit}: {named}{more}")


def _flips(outcomes: Outcomes, bars: Bars) -> Flips:
    old, new = np.asarray(outcomes.old.recall1), np.asarray(outcomes.new.recall1)
    flipped = negative_flips(old, new)
    return Flips(
        rate=bootstrap_mean(flipped * _costs(outcomes, bars.costs), bars.n_boot, bars.seed, bars.confidence),
        relative=relative_negative_flip_rate(old, new),
        positive=float(negative_flips(new, old).mean()),
        queries=tuple(int(place) for place in np.flatnonzero(flipped)),
    )


def _budget(flips: Flips, outcomes: Outcomes, bars: Bars) -> Finding:
    weighed = " (weighed with their costs)" if bars.costs else ""
    text = f"negative flips{weighed}: {flips.rate.text()} % of {flips.rate.n} queries, budget {100 * bars.flips:g}"
    if flips.rate.high <= bars.flips:
        return Finding(check="flips", outcome="pass", message=text)
    if flips.rate.low > bars.flips:
        message = f"{text}: too many queries that were right are wrong now; train against flips, or raise the budget"
        return Finding(check="flips", outcome="fail", message=message)
    each = negative_flips(outcomes.old.recall1, outcomes.new.recall1) * _costs(outcomes, bars.costs)
    count = queries_needed(each, bars.flips, bars.confidence)
    message = f"{text}: the interval is across the budget; {count} queries would decide"
    return Finding(check="flips", outcome="inconclusive", message=message)


def _never(flips: Flips, outcomes: Outcomes, bars: Bars) -> Finding:
    never = set(bars.never)
    keys, classes = _names(outcomes)
    guarded = [place for place, names in enumerate(zip(keys, classes, strict=True)) if never & set(names)]
    lost = [place for place in flips.queries if never & {keys[place], classes[place]}]
    if not lost:
        return Finding(check="never", outcome="pass", message=f"none of {len(guarded)} queries of the never-flip set flipped")
    named = ", ".join(keys[place] or f"query {place}" for place in lost[:5]) + (" ..." if len(lost) > 5 else "")
    message = f"{len(lost)} of {len(guarded)} queries of the never-flip set flipped: {named}"
    return Finding(check="never", outcome="fail", message=message)


def _far(report: UpgradeReport, most: float) -> Finding:
    moved = report.thresholds
    if moved is None:
        message = "FAR at the old threshold was not measured: too few pairs that do not belong together"
        return Finding(check="far", outcome="inconclusive", message=message)
    ratio = moved.far_new.value / moved.far_old.value if moved.far_old.value else float("inf")
    text = f"FAR at the old threshold {moved.threshold:.3f}: {ratio:.2f} times the old one, bar {most:g}"
    if ratio <= most:
        return Finding(check="far", outcome="pass", message=text)
    message = f"{text}; ship the threshold {moved.advised:.3f} with the new model"
    return Finding(check="far", outcome="fail", message=message)


def _known(outcomes: Outcomes, bars: Bars) -> None:
    keys, classes = _names(outcomes)
    there = {*keys, *classes}
    for field, names in (("costs", bars.costs), ("never", bars.never)):
        if unknown := sorted(set(names) - there):
            raise ConfigError(f"{field}: {unknown[0]!r} is neither a class nor the key of a query of this report")


def _names(outcomes: Outcomes) -> tuple[Sequence[str], Sequence[str]]:
    nothing = ("",) * len(outcomes.old.recall1)
    return outcomes.queries.get("key", nothing), outcomes.queries.get("class", nothing)


def _costs(outcomes: Outcomes, costs: Mapping[str, float]) -> npt.NDArray[np.float64]:
    keys, classes = _names(outcomes)
    return np.asarray([costs.get(key, costs.get(name, 1.0)) for key, name in zip(keys, classes, strict=True)], np.float64)
