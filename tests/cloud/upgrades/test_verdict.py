"""Which upgrades may go live, and which may not: one failing case for every bar."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from samespace.cloud.upgrades import Bars, Generation, Pictures, UpgradeReport, judge, measure_chain
from samespace.cloud.upgrades.report import Found, Outcomes
from samespace.sdk.errors import ConfigError

Make = Callable[..., Generation]

#: Bars that a small set can decide.
LENIENT = Bars(slice_least=8, flips=0.3)


def outcomes_of(verdict: object) -> dict[str, str]:
    return {finding.check: finding.outcome for finding in verdict.findings}  # type: ignore[attr-defined]


@pytest.fixture
def good(generation: Make, pictures: Pictures) -> UpgradeReport:
    return measure_chain([generation("old", 1.6, 0), generation("new", 0.7, 1)], pictures)


def with_outcomes(report: UpgradeReport, old: list[int], new: list[int], **fields: list[str]) -> UpgradeReport:
    """The report, of queries that found just this."""

    def found(values: list[int]) -> Found:
        return Found(recall1=tuple(values), map=tuple(float(value) for value in values))  # type: ignore[arg-type]

    queries = {"key": [f"photo {place}" for place in range(len(old))], "class": ["a"] * len(old)} | fields
    outcomes = Outcomes(
        queries={name: tuple(values) for name, values in queries.items()},
        old=found(old),
        new=found(new),
        backfilled=found(new),
    )
    return report.model_copy(update={"outcomes": outcomes})


def test_a_better_successor_in_the_same_space_passes(good: UpgradeReport) -> None:
    verdict = judge(good, LENIENT)
    assert verdict.outcome == "pass", verdict.reasons
    assert verdict.exit_code == 0
    assert verdict.difference.low > 0


def test_a_model_of_another_space_fails(generation: Make, pictures: Pictures) -> None:
    verdict = judge(measure_chain([generation("old", 1.6, 0), generation("new", 0.7, 1, space=4)], pictures), LENIENT)
    assert outcomes_of(verdict)["compatible"] == "fail"
    assert verdict.exit_code == 1
    assert "less in the old gallery" in verdict.reasons[0]


def test_too_few_queries_decide_nothing_and_say_how_many_would(good: UpgradeReport) -> None:
    """A coin that fell 11 : 9 is neither a proof nor a refutation."""
    report = with_outcomes(good, [1] * 9 + [0] * 11, [0] * 9 + [1] * 11)
    verdict = judge(report, Bars(flips=1, metric="recall@1"))
    assert outcomes_of(verdict)["compatible"] == "inconclusive"
    assert verdict.exit_code == 3
    assert "queries would decide" in verdict.reasons[0]


def test_a_slice_that_falls_stops_an_upgrade_that_is_better_on_average(generation: Make, pictures: Pictures) -> None:
    old, new = generation("old", 1.6, 0), generation("new", 0.7, 1, worse={3: 12.0})
    verdict = judge(measure_chain([old, new], pictures), LENIENT)
    found = outcomes_of(verdict)
    assert found["compatible"] == "pass"
    assert found["slices"] == "fail"
    assert "class 'class 3'" in verdict.reasons[0]
    assert [one.value for one in verdict.slices if one.outcome == "fail"] == ["class 3"]


def test_small_slices_are_shown_and_decide_nothing(good: UpgradeReport) -> None:
    report = with_outcomes(good, [1] * 40, [1] * 37 + [0] * 3, source=["phone"] * 37 + ["scanner"] * 3)
    verdict = judge(report, Bars(flips=1, margin=1))
    small = next(one for one in verdict.slices if one.value == "scanner")
    assert small.difference.value == -1
    assert small.outcome is None
    assert outcomes_of(verdict)["slices"] == "pass"


def test_slices_that_are_all_too_small_are_not_said_to_be_good(good: UpgradeReport) -> None:
    report = with_outcomes(good, [1] * 40, [1] * 40, source=["phone"] * 20 + ["scanner"] * 20)
    assert outcomes_of(judge(report))["slices"] == "pass"
    verdict = judge(report, Bars(slice_least=21))
    assert outcomes_of(verdict)["slices"] == "inconclusive"
    assert "none was judged" in verdict.reasons[0]


def test_chance_alone_does_not_fail_one_of_a_hundred_slices(good: UpgradeReport) -> None:
    """A hundred slices of which none changed but by luck: at 95 % each, some would look as if they fell."""
    false_alarms = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        old, new = (list((generator.random(2000) < 0.7).astype(int)) for _ in range(2))
        report = with_outcomes(good, old, new, **{"class": [f"c{place % 100}" for place in range(2000)]})
        verdict = judge(report, Bars(flips=1, margin=1, slice_drop=0.0, slice_least=10))
        false_alarms += outcomes_of(verdict)["slices"] == "fail"
    assert false_alarms <= 3


def test_the_budget_of_flips(good: UpgradeReport) -> None:
    old, new = [1] * 300 + [0] * 100, [1] * 260 + [0] * 40 + [1] * 100
    report = with_outcomes(good, old, new)
    for budget, outcome in ((0.2, "pass"), (0.1, "inconclusive"), (0.02, "fail")):
        assert outcomes_of(judge(report, Bars(flips=budget)))["flips"] == outcome
    flips = judge(report).flips
    assert flips.queries == tuple(range(260, 300))
    assert flips.rate.value == pytest.approx(0.1)
    assert flips.positive == pytest.approx(0.25)


def test_a_costly_flip_weighs_more(good: UpgradeReport) -> None:
    report = with_outcomes(good, [1] * 200, [0] * 2 + [1] * 198, **{"class": ["mushroom"] * 20 + ["hat"] * 180})
    assert outcomes_of(judge(report, Bars(margin=1)))["flips"] == "pass"
    dear = judge(report, Bars(margin=1, costs={"mushroom": 50.0}))
    assert outcomes_of(dear)["flips"] != "pass"
    assert dear.flips.rate.value == pytest.approx(50 * 2 / 200)


def test_one_flip_of_the_never_flip_set_is_one_too_many(good: UpgradeReport) -> None:
    report = with_outcomes(good, [1] * 200, [1] * 199 + [0], **{"class": ["hat"] * 199 + ["fly agaric"]})
    bars = Bars(margin=0.05)
    assert judge(report, bars).outcome == "pass"
    for never in ("fly agaric", "photo 199"):
        verdict = judge(report, bars.model_copy(update={"never": (never,)}))
        assert verdict.outcome == "fail"
        assert "photo 199" in verdict.reasons[0]
    assert judge(report, bars.model_copy(update={"never": ("hat",)})).outcome == "pass"


@pytest.mark.parametrize("bars", [Bars(never=("toadstool",)), Bars(costs={"toadstool": 2.0})])
def test_a_guarded_name_that_nobody_knows_is_refused(good: UpgradeReport, bars: Bars) -> None:
    """Else a typing mistake would guard nothing."""
    with pytest.raises(ConfigError, match="'toadstool' is neither a class nor"):
        judge(good, bars)


def test_a_threshold_that_lets_too_many_in_fails_where_it_is_judged(good: UpgradeReport) -> None:
    moved = good.thresholds
    assert moved is not None
    loose = moved.model_copy(update={"far_new": moved.far_old.__class__(3 * moved.far_old.value, 0, 1, 9)})
    report = good.model_copy(update={"thresholds": loose})
    assert "far" not in outcomes_of(judge(report, LENIENT))
    strict = LENIENT.model_copy(update={"far_ratio": 1.25})
    verdict = judge(report, strict)
    assert outcomes_of(verdict)["far"] == "fail"
    assert "ship the threshold" in verdict.reasons[0]
    assert outcomes_of(judge(good.model_copy(update={"thresholds": None}), strict))["far"] == "inconclusive"


def test_bars_that_cannot_be_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"bar margin: .*got 2"):
        Bars.of(margin=2)
    with pytest.raises(ConfigError, match="bar margn"):
        Bars.of(margn=0.1)
