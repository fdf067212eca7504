"""The benchmark of the gallery at its smallest size, and what it says of figures."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2] / "benchmarks" / "gallery"
NAMES = tuple(path.stem for path in ROOT.glob("*.py"))
COMMON: dict[str, Any] = {"seeds": (7,), "device": "here", "command": "none", "commit": "0"}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """``bench("growth")``: a module of a folder that is no package."""
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module
    sys.path.remove(str(ROOT))
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """A folder for a server that may run as another user: pytest's own folders are for this user only."""
    with tempfile.TemporaryDirectory(prefix="samespace-test-") as folder:
        yield Path(folder) / "data"


@pytest.fixture(scope="module")
def dataset(bench: Any) -> Any:
    generator = np.random.default_rng(0)
    real = generator.normal(size=(60, 128))
    return bench("dataset").Dataset((real / np.linalg.norm(real, axis=1, keepdims=True)).astype(np.float32))


def test_vectors_are_the_same_each_time_and_a_small_set_begins_a_large_one(bench: Any, dataset: Any) -> None:
    few, many = dataset.rows(300), dataset.rows(10_100)
    np.testing.assert_array_equal(few, many[:300])
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)
    assert len(np.unique(many, axis=0)) == len(many)
    assert not (dataset.queries(50)[:, None] == many[None, :2000]).all(axis=2).any()


def test_brute_force_agrees_with_the_obvious(bench: Any, dataset: Any) -> None:
    rows, queries = dataset.rows(500), dataset.queries(5)
    for every in (1, 10):
        expected = [sorted(range(0, 500, every), key=lambda i: -float(q @ rows[i]))[:10] for q in queries.astype(np.float64)]
        assert bench("dataset").nearest(rows, queries, 10, every) == expected


@pytest.mark.database
def test_one_point_is_measured(bench: Any, tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> None:
    world = bench("dataset").open_world(tmp_path_factory.mktemp("world"))
    data = bench("dataset").Dataset(bench("dataset").seeds_of(world, "ci"))
    effort = {"queries": 8, "seconds": 0.2, "rounds": 1, "added": 8}
    point = bench("point").measure_point(data_folder, world, data, 300, effort)
    assert np.mean(point["recall"]) == np.mean(point["filtered_tenth_recall"]) == 1.0
    assert all(len(point[f"{name}_ms"]) == 8 for name in ("service", "bare_route", "bare_query"))
    with bench("filled").filled(data_folder, world, data, 300) as store:
        assert store.facts == point["filled"], "what was filled is found again"
        with bench("bare").connect(store.url) as connection:
            left = connection.execute("SELECT count(*), count(DISTINCT item_id) FROM items").fetchone()
        assert left == (300, 300), "what was added for the measurement is gone"
    records = {r.id: r for r in bench("run").records_of({"point-300": point}, COMMON)}
    assert {"gallery-search-300", "gallery-throughput-300", "gallery-recall-300", "gallery-adding-300"} <= records.keys()
    assert records["gallery-search-300"].measured["ratio"] > 0
    assert records["gallery-growth"].reason == "fewer than three points"


def test_a_bar_that_is_missed_stays_in_the_ledger_as_missed(bench: Any) -> None:
    point = {
        "n": 10,
        "service_ms": [2.0] * 9,
        "bare_route_ms": [1.0] * 9,
        "bare_query_ms": [0.5] * 9,
        "service_rate": [90.0] * 3,
        "bare_route_rate": [100.0] * 3,
        "recall": [1.0] * 9,
        "bare_recall": [1.0] * 9,
        "filtered_tenth_recall": [0.5] * 9,
        "filtered_tenth_ms": 1.0,
        "filtered_hundredth_recall": [1.0] * 9,
        "filtered_hundredth_ms": 1.0,
        "service_added_rate": [10.0] * 4,
        "bare_added_rate": [10.0] * 4,
        "table_bytes": 1000,
        "index_bytes": 1000,
        "service_rss_bytes": 1000,
    }
    holds = {r.id: r.holds for r in bench("run").records_of({"point-10": point}, COMMON)}
    assert holds == {
        "gallery-search-10": False,
        "gallery-throughput-10": True,
        "gallery-recall-10": True,
        "gallery-filtered-tenth-recall-10": False,
        "gallery-filtered-hundredth-recall-10": True,
        "gallery-adding-10": True,
        "gallery-growth": False,
    }


def test_models_find_their_own_coefficients_and_are_checked_at_the_largest_point(bench: Any, tmp_path: Path) -> None:
    growth = bench("growth")
    points = [
        {
            "n": n,
            "disk_bytes": 5000 + 700 * n,
            "index_bytes": 300 * n,
            "search_ms": 1 + 0.2 * np.log(n),
            "added_ms": 0.3 * np.log(n),
            "service_rss_bytes": 1e8,
        }
        for n in (1000, 10_000, 100_000)
    ]
    assert max(c["error"] for c in growth.check(points).values()) < 1e-6
    points[-1]["index_bytes"] *= 2
    assert growth.check(points)["index_bytes"]["error"] == pytest.approx(0.5)
    growth.plot(points, tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()
    assert "| 100 000 |" in growth.table(points)


def test_a_peer_that_is_not_there_is_reported_not_raised(
    bench: Any, dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAMESPACE_PEERS_PYTHON", sys.executable)
    told = bench("peers").measure_peer("no-such-engine", tmp_path, dataset, 20, 2, 60)
    assert "no-such-engine" in told["error"]
    (record,) = bench("run").records_of({"peer-no-such-engine": told}, COMMON)
    assert not record.holds
