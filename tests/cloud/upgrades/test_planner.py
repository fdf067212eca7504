"""The plan for a fleet, against every plan there is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from samespace.cloud.cli.rollout import app
from samespace.cloud.upgrades.planner import Fleet, Way, plan, read_fleet
from samespace.sdk.errors import ConfigError

GRID = [step / 20 for step in range(21)]
values = st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """Small fleets whose curves bend only on a grid that brute force can walk."""
    devices, galleries = ["phone-1", "phone-2", "phone-3"][: draw(st.integers(1, 3))], ["cloud-1", "cloud-2", "cloud-3"]
    ways = [Way(query=device, gallery="cloud-1", curve=((0.0, draw(values)),)) for device in devices]
    for device, gallery in itertools.product(devices, galleries[1 : 1 + draw(st.integers(0, 2))]):
        for adapter in [None, "back"][: draw(st.integers(0, 2))]:
            for order in draw(st.sampled_from([[None], ["random"], ["random", "uncertain"]])):
                shares = sorted(draw(st.sets(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1)))
                curve = tuple((share, draw(values)) for share in shares)
                ways.append(Way(query=device, gallery=gallery, adapter=adapter, order=order, curve=curve))
    traffic = {device: draw(st.sampled_from([0.0, 1.0, 2.0, 5.0])) for device in devices}
    if not sum(traffic.values()):
        traffic[devices[0]] = 1.0
    budget = draw(st.sampled_from([0, 5, 10, 20]))
    return Fleet(traffic=traffic, gallery="cloud-1", items=20, budget=budget, ways=tuple(ways))


def brute_force(fleet: Fleet, grid: list[float]) -> float:
    """Expected M of the best of all plans on the grid: gallery x order x share x a way for each device."""
    total = sum(fleet.traffic.values())

    def today(device: str) -> float:
        return max(way.at(0.0) or 0.0 for way in fleet.ways if way.query == device and way.gallery == fleet.gallery)

    best = -np.inf
    orders = {way.order for way in fleet.ways} | {None}
    for gallery, order, share in itertools.product({way.gallery for way in fleet.ways}, orders, grid):
        if share * fleet.items > fleet.budget + 1e-9:
            continue
        choices = [
            [way for way in fleet.ways if way.query == device and way.gallery == gallery and way.order in (None, order)]
            for device in fleet.traffic
        ]
        for chosen in itertools.product(*choices):
            found = [way.at(share) for way in chosen]
            if any(value is None for value in found):
                continue
            if any(value < today(device) - 1e-9 for value, device in zip(found, fleet.traffic, strict=True)):  # type: ignore[operator]
                continue
            best = max(best, sum(s * v for s, v in zip(fleet.traffic.values(), found, strict=True)) / total)  # type: ignore[operator]
    return best


@settings(deadline=None, max_examples=150)
@given(fleets())
def test_no_other_plan_is_better(fleet: Fleet) -> None:
    found = plan(fleet)
    assert found.after >= brute_force(fleet, GRID) - 1e-9
    # The plan is one that brute force would have found, had its grid the same point.
    assert found.after == pytest.approx(brute_force(fleet, [*GRID, found.share]))


@settings(deadline=None, max_examples=100)
@given(fleets())
def test_nobody_is_worse_off_and_the_budget_is_kept(fleet: Fleet) -> None:
    found = plan(fleet)
    assert all(step.after >= step.before - 1e-9 for step in found.steps)
    assert found.items <= fleet.budget
    assert found.after >= found.before - 1e-9
    assert sum(step.traffic for step in found.steps) == pytest.approx(1)


def way(query: str, gallery: str, *curve: tuple[float, float], **more: str) -> Way:
    return Way.model_validate({"query": query, "gallery": gallery, "curve": curve, **more})


def test_a_backfill_that_harms_old_phones_stops_where_it_begins_to() -> None:
    fleet = Fleet(
        traffic={"old": 1, "new": 9},
        gallery="cloud-1",
        items=1000,
        budget=1000,
        ways=(
            way("old", "cloud-1", (0, 0.4)),
            way("new", "cloud-1", (0, 0.5)),
            way("old", "cloud-2", (0, 0.5), (1, 0.3)),
            way("new", "cloud-2", (0, 0.5), (1, 0.7)),
        ),
    )
    found = plan(fleet)
    assert found.gallery == "cloud-2"
    assert found.share == pytest.approx(0.5), "beyond it the old phones would find less than today"
    tolerant = plan(fleet.model_copy(update={"tolerance": 0.05}))
    assert tolerant.share == pytest.approx(0.75)


def test_an_adapter_is_used_where_it_helps_and_named() -> None:
    ways = (way("old", "c1", (0, 0.4)), way("new", "c1", (0, 0.1)), way("new", "c1", (0, 0.5), adapter="B"))
    found = plan(Fleet(traffic={"old": 1, "new": 1}, gallery="c1", items=10, budget=0, ways=ways))
    assert [step.adapter for step in found.steps] == [None, "B"]
    assert found.items == 0


def test_a_gallery_that_somebody_cannot_search_is_refused_by_name() -> None:
    ways = (way("old", "c1", (0, 0.4)), way("new", "c1", (0, 0.4)), way("new", "c2", (1, 0.9)))
    found = plan(Fleet(traffic={"old": 1, "new": 99}, gallery="c1", items=10, budget=10, ways=ways))
    assert found.gallery == "c1"
    assert found.refused == {"c2": "old"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"traffic": {"phone": 1.0}}, "what 'phone' finds in today's gallery"),
        ({"traffic": {"old": -1.0}}, "shares must be at least 0"),
        ({"budgt": 3}, "budgt"),
        ({"ways": [{"query": "old", "gallery": "c1", "curve": [[0.5, 0.1], [0.2, 0.3]]}]}, "must rise"),
    ],
)
def test_a_fleet_that_cannot_be_planned_for_says_why(change: dict, message: str) -> None:
    content = {"traffic": {"old": 1.0}, "gallery": "c1", "items": 10, "budget": 1,
               "ways": [{"query": "old", "gallery": "c1", "curve": [[0.0, 0.4]]}]}  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        read_fleet({**content, **change}, "fleet.toml")


def test_the_command_plans_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text("""
gallery = "cloud-1"
items = 1000
budget = 0
[traffic]
"phone-1" = 7
"phone-2" = 3
[[ways]]
query = "phone-1"
gallery = "cloud-1"
value = 0.4
[[ways]]
query = "phone-2"
gallery = "cloud-1"
value = 0.45
[[ways]]
query = "phone-1"
gallery = "cloud-2"
order = "uncertainty"
curve = [[0.0, 0.4], [0.5, 0.42], [1.0, 0.43]]
[[ways]]
query = "phone-2"
gallery = "cloud-2"
order = "uncertainty"
curve = [[0.0, 0.45], [0.5, 0.6], [1.0, 0.62]]
""")
    result = CliRunner().invoke(app, [str(file), "--budget", "500"])
    assert result.exit_code == 0, result.output
    assert "serve cloud-2, embed 500 items anew (50 %, uncertainty first)" in result.output
    assert "phone-2:  30.0 % of the queries, as it is: 45.0 -> 60.0 %" in result.output
    told = json.loads(CliRunner().invoke(app, [str(file), "--json"]).output)
    assert told["gallery"] == "cloud-1"
