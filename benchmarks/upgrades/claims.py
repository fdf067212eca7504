"""The claims about upgrades, each with its bar, as records of the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from adapted import BOTH, Adapted, Refreshed
from chains import Chain
from crash import Crashes
from flips import Update
from paired import Figure
from protocol import NAMED
from records import Recorder
from retrieval import Step

from samespace.cloud.upgrades.report import UpgradeReport
from samespace.sdk.evidence import EvidenceRecord

__all__ = ["Found", "claims"]


@dataclass(frozen=True)
class Found:
    """Everything that was measured.

    Attributes:
        chance: R@1 of a guess.
        independent: M(n*, o) by metric.
        steps: the one upgrade, by method.
        chains: four generations, by method.
        reports: of the one upgrade, by method, a repetition each: thresholds and groups.
        flips: name of the update -> its treatments.
    """

    chance: float
    independent: Mapping[str, Figure]
    steps: Mapping[str, Step]
    chains: Mapping[str, Chain]
    reports: Mapping[str, list[UpgradeReport]]
    flips: Mapping[str, Update]
    adapted: Adapted
    refreshed: Refreshed
    cost: Mapping[str, Any]
    crashes: Crashes


def claims(found: Found, common: dict[str, Any]) -> list[EvidenceRecord]:
    """One record a claim; what fails stays, with the reason."""
    record = Recorder(common)
    makers = (_backward, _adapters, _chains, _transfer, _flips, _backfill, _operation)
    return [made for maker in makers for made in maker(found, record)]


def _backward(found: Found, record: Recorder) -> Iterator[EvidenceRecord]:
    named, free = found.steps[NAMED], found.independent
    allowed = max(3 * found.chance, 0.05 * named.old["recall@1"].value)
    yield record(
        "A1",
        "a model that was trained without regard to the old one finds nothing in its gallery",
        "M(n*,o) R@1 <= the larger of 3x chance and 5 % of M(o,o)",
        {"M(n*,o) R@1": free["recall@1"], "M(n*,o) mAP": free["map"], "bar": round(100 * allowed, 2)},
        free["recall@1"].value <= allowed,
        "an independent model finds more than chance",
    )
    gap = named.free["recall@1"] - named.old["recall@1"]
    across = {metric: named.across[metric] - named.old[metric] for metric in named.old}
    wide = gap.value >= 0.15
    yield record(
        "A2",
        f"with a real quality gap, {NAMED} (named beforehand) beats the old model in its own gallery, on mAP",
        "M(n*,n*) - M(o,o) >= 15 points of R@1, and the paired interval of M(n,o) - M(o,o) above 0 on mAP",
        {"mAP": across["map"], "gain % of the gap": named.gain("map"), "M(n*,n*) - M(o,o) R@1": gap},
        wide and across["map"].estimate.low > 0,
        "the interval is not above 0" if wide else "the quality gap is too small",
    )
    lifted = {name: step.across["recall@1"] - step.old["recall@1"] for name, step in found.steps.items()}
    yield record(
        "A2-recall",
        f"the same for the first hit: {NAMED}, R@1",
        "M(n,o) above M(o,o) on mean R@1",
        {NAMED: across["recall@1"], **{name: figure for name, figure in lifted.items() if name in ("ract", "hoc", "combined")}},
        across["recall@1"].value > 0,
        "mAP rises, the first hit falls: the new model's own classes pull queries off the old prototypes; the combined loss "
        "(bct, regression, ract) raises both",
    )
    for name in ("bct", "ract"):
        step = found.steps[name]
        tax = step.tax("recall@1")
        yield record(
            f"A3-{name}",
            f"compatibility by {name} costs the new model little",
            "M(n*,n*) - M(n,n) <= 3 points of R@1 (stretch: 1)",
            {"tax R@1": tax, "tax mAP": step.tax("map"), "gain % mAP": step.gain("map")},
            tax.value <= 0.03,
            "the tax is above 3 points",
        )


def _adapters(found: Found, record: Recorder) -> Iterator[EvidenceRecord]:
    old, new = found.adapted.old, found.adapted.new
    ratio = new["ridge, forward"]["map"] / old["map"]
    yield record(
        "A4-ridge",
        "a ridge regression of the gallery lets an independent, stronger model search it nearly as well as the old one did",
        "M(n,o) >= 0.9 x M(o,o) on mAP",
        {"% of M(o,o)": ratio},
        ratio.value >= 0.9,
        "less than nine tenths",
    )
    rivals = {name: new[BOTH]["map"] - new[name]["map"] for name in ("procrustes", "ridge", "ridge, forward")}
    yield record(
        "A4",
        "a learned pair of adapters, gallery forward and queries backward, beats ridge and Procrustes on mAP",
        "paired intervals above 0 against each (stretch: 2 points above M(o,o))",
        {**{f"above {name}": gain for name, gain in rivals.items()}, "above M(o,o)": new[BOTH]["map"] - old["map"]},
        all(gain.estimate.low > 0 for gain in rivals.values()),
        "not better than each",
    )
    harm = new["procrustes"]["map"] - old["map"]
    said = found.adapted.outcomes["procrustes"]
    yield record(
        "A5",
        "a rotation that hurts is refused by the gate",
        "verdict 'fail' for Procrustes in every repetition, where M(n,o) - M(o,o) < 0",
        {"M(n,o) - M(o,o) mAP": harm, "verdicts": ", ".join(said)},
        harm.value < 0 and set(said) == {"fail"},
        "it did not hurt, or was let through",
    )


def _chains(found: Found, record: Recorder) -> Iterator[EvidenceRecord]:
    for method, chain in found.chains.items():
        own = [chain.matrix["map"][place][place] for place in range(len(chain.matrix["map"]))]
        gaps = [round(100 * (b - a).value, 1) for a, b in pairwise(own)]
        yield record(
            f"chain-{method}",
            f"four generations by {method}: the share of pairs in which a newer model beats the older one in its gallery",
            "AC = 1 on mAP (the stretch)",
            {
                "AC mAP": chain.compatibility["map"],
                "AC R@1": chain.compatibility["recall@1"],
                "AA mAP": chain.accuracy["map"],
                "M(i,i) gaps, points of mAP": str(gaps),
            },
            chain.compatibility["map"].value >= 1,
            "not all pairs: across two and three generations the gain of the newer queries is lost",
        )


def _transfer(found: Found, record: Recorder) -> Iterator[EvidenceRecord]:
    moved = {name: [one.thresholds for one in reports if one.thresholds] for name, reports in found.reports.items()}
    named = moved[NAMED]
    kept = [t.tar_new.value >= t.tar_old.value and t.far_new.value <= 1.25 * t.far for t in named]
    yield record(
        "thresholds",
        f"T1: an old threshold still holds for {NAMED}'s queries in the old gallery",
        "in every repetition: TAR at the old threshold not lower, FAR <= 1.25x",
        {
            "TAR before": _mean([t.tar_old.value for t in named]),
            "TAR after": _mean([t.tar_new.value for t in named]),
            "FAR after / FAR": _mean([t.far_new.value / t.far for t in named]) / 100,
            "FAR": named[0].far if named else 0.0,
        },
        bool(kept) and all(kept),
        "cosines of new queries and old items are lower than those of the old model with itself: FAR falls, and TAR with it; "
        "use the threshold that the report advises",
    )
    advised = {name: [t.tar_advised.value - t.tar_old.value for t in every] for name, every in moved.items()}
    yield record(
        "thresholds-advised",
        f"at the threshold that the report advises instead, at the same FAR, {NAMED} accepts no fewer",
        "in every repetition: TAR at the advised threshold not lower than before",
        {name: _mean(values) for name, values in advised.items()},
        bool(advised[NAMED]) and min(advised[NAMED]) >= 0,
        "lower in one repetition at least",
    )
    groups = {name: [one.groups for one in reports if one.groups] for name, reports in found.reports.items()}
    worse = [g.rule_error_new.value - g.rule_error_old.value for g in groups[NAMED]]
    yield record(
        "clusters",
        f"yesterday's groups and their rule survive {NAMED}: new photos are put to them no worse by new queries",
        "in every repetition: the rule's error is not higher than with old queries",
        {
            "rule error before": _mean([g.rule_error_old.value for g in groups[NAMED]]),
            "rule error after": _mean([g.rule_error_new.value for g in groups[NAMED]]),
            "adjusted Rand index of both models' groups": _mean([g.agreement for g in groups[NAMED]]) / 100,
            "of the old groups with the classes": _mean([g.truth_old for g in groups[NAMED]]) / 100,
            "of the new groups with the classes": _mean([g.truth_new for g in groups[NAMED]]) / 100,
        },
        bool(worse) and max(worse) <= 0,
        "the rule's threshold does not fit the new queries' lower cosines, so more are put to no group",
    )


def _flips(found: Found, record: Recorder) -> Iterator[EvidenceRecord]:
    words = {
        "same": "focal distillation cuts negative flips of an update of the same network",
        "wide": "the same for an update to a network twice as wide",
        "retrieval": "the same for retrieval: queries that found their class in the old gallery and no longer do",
    }
    for name, claim in words.items():
        update = found.flips[name]
        yield record(
            "P1" if name == "same" else f"P1-{name}",
            claim,
            "flips cut by >= 20 % (stretch: 30 %), error at most 0.5 points higher; weight chosen on other pictures or classes",
            {"cut %": update.cut, "error": update.cost, "flips without": update.plain.flips, "weight": update.name},
            update.cut.value >= 0.2 and update.cost.value <= 0.005,
            "the cut is too small, or costs too much",
        )
    same = found.flips["same"]
    ratio = same.treated["fd-lm-1.0"].flips / same.treated["kd-lm-1.0"].flips
    yield record(
        "P2",
        "the focal filter is no worse than plain distillation",
        "flips of FD(1, 5) <= 1.1x those of KD(1, 0)",
        {"FD / KD %": ratio},
        ratio.value <= 1.1,
        "the filter does not help here",
    )
    naive = same.cut_of("naive")
    yield record(
        "P3",
        "naive re-weighting is not enough",
        "its cut is at most half of focal distillation's",
        {"naive cut %": naive, "focal cut %": same.cut},
        naive.value <= same.cut.value / 2,
        "it does more than half",
    )
    ensembles = found.flips["ensembles"]
    whole, student = ensembles.cut_of("ensemble"), ensembles.cut_of("elodi")
    yield record(
        "P4",
        "ensembles flip less, and a single model distilled from one (ELODI) keeps half of that",
        "flips of an ensemble of 3 <= 0.75x a single model's; ELODI's cut >= half of the ensemble's",
        {"ensemble cut %": whole, "ELODI cut %": student},
        whole.value >= 0.25 and student.value >= whole.value / 2,
        "less",
    )
    growing = found.flips["growing"]
    fd, mpt = growing.cut_of("fd"), growing.cut_of("mpt")
    yield record(
        "P5",
        "where the update adds classes, focal distillation cuts fewer flips; a margin-preserving objective does better",
        "cut of FD below that of the same-class update, and the bias-corrected variant's above FD's",
        {"FD cut %": fd, "margin-preserving cut %": mpt, "margin-preserving error": growing.cost},
        fd.value < same.cut.value and mpt.value > fd.value,
        "not in this order",
    )


def _backfill(found: Found, record: Recorder) -> Iterator[EvidenceRecord]:
    refreshed = found.refreshed
    gains = {
        name: refreshed.area(name, "uncertainty") - refreshed.area(name, "random")
        for name in ("adapted", "bct", "ract", "combined")
    }
    yield record(
        "B1",
        "the backfill order matters: most uncertain first beats random, by the area under the curve of mAP",
        "paired interval above 0 for a gallery that an adapter maps; mixed galleries beside it",
        gains,
        gains["adapted"].estimate.low > 0,
        "no better than random",
    )
    dips = {f"{name}, calibrated": refreshed.dip(name, "random") for name in ("bct", "ract", "combined")}
    plain = {f"{name}, scores as they are": refreshed.dip(f"{name}, as it is", "random") for name in ("bct", "ract")}
    yield record(
        "B2",
        "a gallery that is half re-embedded never finds less than the old one did, in random order",
        "lowest point of the curve >= M(o,o) - 0.5 points of mAP, with calibrated scores",
        {**dips, **plain},
        all(dip.value >= -0.005 for dip in dips.values()),
        "the mixed gallery dips",
    )


def _operation(found: Found, record: Recorder) -> Iterator[EvidenceRecord]:
    cost, crashes = found.cost, found.crashes
    quick = max(cost["register_s"], cost["promote_s"], cost["roll_back_s"])
    hours = cost["n"] / cost["pictures_per_s"] / 3600 + cost["n"] / cost["backfill_per_s"] / 3600
    yield record(
        "cost",
        f"upgrading a gallery of {cost['n']:,} vectors takes seconds and re-embeds no image",
        "register, promote and roll back within 10 s each, 0 items embedded anew, hits at once; fit and map an adapter within "
        "10 minutes",
        {
            **{
                name: round(cost[f"{name}_s"], 2) for name in ("register", "promote", "roll_back", "first_search", "fit", "map")
            },
            "embedded anew": cost["embedded_anew"],
            **{name: round(cost[name], 1) for name in cost if name.endswith("_ms")},
            "pictures embedded a second": round(cost["pictures_per_s"]),
            "vectors backfilled a second": round(cost["backfill_per_s"]),
            "hours of a whole backfill, extrapolated": round(hours, 2),
        },
        quick <= 10 and not cost["embedded_anew"] and cost["found_at_once"] > 0 and cost["fit_s"] + cost["map_s"] <= 600,
        "a step took longer",
    ).model_copy(update={"n": cost["n"]})
    yield record(
        "crash",
        "kill -9 of client, service and database during backfill, promotion and rollback, under load: one declared state, "
        "nothing lost, and the backfill goes on to its end",
        "0 items lost, changed or revived, 0 torn states, 0 answers of undeclared scores, 0 backfills that do not end",
        {
            **crashes.wrong,
            "items checked": crashes.checked,
            "answers checked": crashes.answers,
            "kills": str(dict(crashes.rounds)),
        },
        not any(crashes.wrong.values()),
        "; ".join(crashes.said) or "see the counts",
    ).model_copy(update={"n": sum(crashes.rounds.values())})


def _mean(values: list[float]) -> float:
    """In percent."""
    return round(100 * sum(values) / len(values), 3) if values else 0.0
