"""The evidence benchmark: its recipes are recipes, its networks cost the same, and its statistics are what slow ones give."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from samespace.cloud.recipe import Recipe
from samespace.cloud.training.tier import build_tier

FOLDER = Path(__file__).parents[2] / "benchmarks" / "heterogeneous"
NAMES = tuple(path.stem for path in FOLDER.glob("*.py"))


class Bench:
    """The benchmark's modules, which stand in a folder that is no package: ``bench.paired`` imports ``paired``."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    yield Bench()
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        sys.modules.pop(name, None)


def recipes(bench: Any, size: str) -> list[Recipe]:
    """Of all jobs, the cloud model trained in each, as far as this installation has the losses and settings they use."""
    found = [job for job in bench.protocol.jobs(size, cloud_run=None) if job.recipe and not bench.run.unavailable(job)]
    return [Recipe.model_validate(job.recipe) for job in found]


@pytest.mark.parametrize("size", ["full", "small", "ci"])
def test_every_job_is_a_recipe(bench: Any, size: str) -> None:
    found = recipes(bench, size)
    assert len(found) >= 5
    names = [job.name for job in bench.protocol.jobs(size)]
    assert len(set(names)) == len(names)


def test_every_job_can_run_here(bench: Any) -> None:
    assert {job.name: bench.run.unavailable(job) for job in bench.protocol.jobs("full") if bench.run.unavailable(job)} == {}


def test_all_models_of_one_architecture_and_seed_start_from_the_same_weights(bench: Any) -> None:
    starts: dict[tuple[str, int], list[Any]] = {}
    for job in bench.protocol.jobs("ci", cloud_run=None):
        if job.part not in ("main", "others") or not job.cells or "cloud" in job.cells or bench.run.unavailable(job):
            continue
        recipe = Recipe.model_validate(job.recipe)
        for name, cell in job.cells.items():
            weights = next(build_tier(recipe, name, classes=2).model.parameters()).detach()
            starts.setdefault((cell.architecture, cell.seed), []).append(weights)
    assert len(starts) >= 4
    for same in starts.values():
        assert all((weights == same[0]).all() for weights in same)
    assert not (starts["residual", 0][0] == starts["residual", 1][0]).all()


def test_the_networks_cost_the_same_and_a_twentieth_of_the_cloud_model(bench: Any) -> None:
    macs, cloud = bench.run.costs(bench.protocol.SIZES["full"].cloud_width)
    assert len(macs) >= 6
    middle = sorted(macs.values())[len(macs) // 2]
    assert all(abs(cost - middle) <= 0.1 * middle for cost in macs.values()), macs
    assert max(macs.values()) * 20 <= cloud


def slow_draws(hits: np.ndarray, resamples: Any) -> list[float]:
    """The same resamples, one value at a time."""
    means = []
    for queries, seeds in zip(resamples.drawn_queries, resamples.drawn_seeds, strict=True):
        means.append(float(np.mean([hits[s, q] for s, q in product(seeds, queries)])))
    return means


def test_resamples_equal_a_slow_loop(bench: Any) -> None:
    generator = np.random.default_rng(0)
    a, b = (generator.random((3, 40)) < share for share in (0.5, 0.7))
    resamples = bench.paired.Resamples(3, 40, count=50)
    first, second = resamples.figure(a), resamples.figure(b)
    np.testing.assert_allclose(first.draws, slow_draws(a, resamples))
    gap = second - first
    assert gap.value == pytest.approx(b.mean() - a.mean())
    np.testing.assert_allclose(gap.draws, np.subtract(slow_draws(b, resamples), slow_draws(a, resamples)))
    ratio = first / second
    np.testing.assert_allclose(ratio.draws, np.divide(slow_draws(a, resamples), slow_draws(b, resamples)))
    low, high = np.quantile(gap.draws, [0.025, 0.975])
    assert (gap.estimate.low, gap.estimate.high) == (low, high)


def test_one_training_is_resampled_over_queries_only(bench: Any) -> None:
    hits = np.random.default_rng(0).random(40) < 0.5
    resamples = bench.paired.Resamples(3, 40, count=20)
    np.testing.assert_allclose(resamples.figure(hits).draws, resamples.figure(np.stack([hits] * 3)).draws)
    with pytest.raises(ValueError, match="shape"):
        resamples.figure(np.zeros((2, 40)))


def test_a_paired_difference_is_surer_than_two_figures(bench: Any) -> None:
    hard = np.random.default_rng(0).random((3, 400)) < 0.5
    better = hard.copy()
    better[:, :12] = True
    resamples = bench.paired.Resamples(3, 400)
    gap = resamples.figure(better) - resamples.figure(hard)
    assert gap.estimate.low > 0
    assert gap.p_value < 0.05
    assert (resamples.figure(hard) - resamples.figure(hard)).p_value == 1


def test_holm_is_the_textbook_step_down(bench: Any) -> None:
    assert bench.paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bench.paired.holm([]) == []


def candidates(bench: Any, rates: dict[str, tuple[float, float]], queries: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Figures of candidates that find so many of their own and of the cloud's."""
    generator = np.random.default_rng(seed)
    resamples = bench.paired.Resamples(3, queries, count=500)
    difficulty = generator.random((3, queries))
    return {name: tuple(resamples.figure(difficulty < rate) for rate in both) for name, both in rates.items()}


def test_an_inversion_that_is_there_is_confirmed_and_one_by_noise_is_not(bench: Any) -> None:
    rates = {"a": (0.60, 0.40), "b": (0.55, 0.46), "c": (0.50, 0.35)}
    found = bench.paired.inversions(candidates(bench, rates, 500, 1), candidates(bench, rates, seed=2))
    assert [(pair.first, pair.second, pair.confirmed) for pair in found] == [("a", "b", True)]
    assert found[0].own.low > 0
    assert found[0].cross.low > 0
    # What validation classes showed, test classes do not.
    gone = bench.paired.inversions(candidates(bench, rates, 500, 1), candidates(bench, {**rates, "b": (0.55, 0.38)}))
    assert [(pair.confirmed, pair.p) for pair in gone] == [(False, 1.0)]


def cells_of(bench: Any, rates: dict[tuple[str, str], tuple[float, float]], paragon: float = 0.6) -> Any:
    """Cells in which (architecture, loss) finds so many of its own and of the cloud's."""
    generator = np.random.default_rng(0)
    cells = bench.cells.Cells((0, 1, 2), resamples=1500)
    for split, queries in (("validation", 300), ("test", 1000)):
        cells.paragon[split, "main", 0] = (generator.random(queries) < paragon).astype(np.float32)
        for seed in cells.seeds:
            difficulty = generator.random(queries)
            for (architecture, loss), both in rates.items():
                cell = bench.protocol.Cell("main", architecture, loss, seed)
                for side, rate in zip(("own", "cross"), both, strict=True):
                    cells.hits[split, cell, side] = (difficulty < rate).astype(np.float32)
    return cells


COMMON = {"seeds": (0, 1, 2), "device": "a machine", "command": "make bench", "commit": "abc"}


def claims_of(bench: Any, cells: Any, speed: dict[str, Any] | None = None) -> dict[str, Any]:
    macs = dict.fromkeys(bench.protocol.ARCHITECTURES, 2_400_000)
    records = bench.claims.claims(cells, macs, 60_000_000, {}, speed, COMMON)
    return {record.id: record for record in records}


def good(bench: Any) -> dict[tuple[str, str], tuple[float, float]]:
    """Figures under which every claim about losses holds."""
    rates = {}
    for number, name in enumerate(bench.protocol.ARCHITECTURES):
        rates |= {
            (name, "vanilla"): (0.40, 0.0),
            (name, "head"): (0.44, 0.38),
            (name, "regression"): (0.45, 0.42),
            (name, "head-regression"): (0.60 - 0.03 * number, 0.45 + 0.02 * number),
            (name, "head-regression-csd"): (0.60, 0.60),
            (name, "relational"): (0.40, 0.0),
        }
    return rates


def test_the_claims_hold_where_they_should_and_not_where_they_should_not(bench: Any) -> None:
    found = claims_of(bench, cells_of(bench, good(bench)))
    held = {"H0", "H1-unsearched", "H2", "H3", "H3-neighbours", "H4", "H4-spread", "H5"}
    assert {name for name in held if not found[name].holds} == set(), found
    bad = {key: (0.55, 0.30 if key[1] != "vanilla" else 0.2) for key in good(bench)}
    found = claims_of(bench, cells_of(bench, bad))
    assert {name for name in held if found[name].holds} == {"H3-neighbours"}
    assert all(found[name].reason for name in held - {"H3-neighbours"})


def test_retention_is_over_the_paragon(bench: Any) -> None:
    cells = cells_of(bench, good(bench))
    record = claims_of(bench, cells)["H5"]
    best = record.measured["of"]
    rows = [cells.hits["test", bench.protocol.Cell("main", best, "head-regression", seed), "cross"] for seed in cells.seeds]
    assert record.measured["H"] == pytest.approx(np.mean(rows) / cells.paragon["test", "main", 0].mean(), abs=1e-3)


def test_what_is_missing_is_named_with_the_part_that_measures_it(bench: Any) -> None:
    found = claims_of(bench, bench.cells.Cells((0, 1, 2)))
    assert len(found) >= 12
    assert not any(record.holds for record in found.values())
    assert "--only prefixes" in found["M1"].reason
    assert "--only search" in found["H1"].reason
    speed = {"ratio": 0.98, "low": 0.97, "high": 0.99, "rounds": 10, "ours_images_s": 98.0, "plain_images_s": 100.0}
    assert claims_of(bench, bench.cells.Cells((0, 1, 2)), speed)["throughput"].holds


def test_cells_are_read_from_finished_runs_only(bench: Any, tmp_path: Path) -> None:
    jobs = [job for job in bench.protocol.jobs("ci") if job.name in ("cloud", "main-0-seed0")]
    for job in jobs:
        run = tmp_path / "runs" / job.name
        run.mkdir(parents=True)
        found = {}
        for split, name in product(("validation", "test"), (*job.cells, "cloud")):
            for gallery in {name, "cloud"}:
                found |= {
                    f"{split}/{name}->{gallery}": np.ones(4, np.float32),
                    f"{split}/{name}->{gallery}/ap": np.zeros(4, np.float32),
                }
        (run / "queries.safetensors").write_bytes(safetensors.numpy.save(found))
    assert not bench.cells.read_cells(tmp_path, jobs, (0,)).hits
    for job in jobs:
        (tmp_path / "runs" / job.name / "matrices.json").write_text("[]")
    cells = bench.cells.read_cells(tmp_path, jobs, (0,))
    assert cells.best().value == 1
    assert cells.figure("residual", "head-regression", "cross").value == 1
    assert not cells.has("residual", "csd")


def job_of(bench: Any, name: str, text: str, seconds: float = 1, after: tuple[str, ...] = ()) -> Any:
    return bench.protocol.Job(name, "part", seconds, script=("-c", text), after=after)


def test_the_pool_goes_on_after_a_failure_and_does_nothing_twice(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = bench.pool.Workplace(tmp_path, "ci")
    done = "import pathlib; p = pathlib.Path({path!r}); p.parent.mkdir(parents=True); p.write_text('{{}}')"
    wanted = [
        job_of(bench, "long", done.format(path=str(place.run("long") / "done.json")), 9),
        job_of(bench, "first", done.format(path=str(place.run("first") / "done.json"))),
        job_of(bench, "second", done.format(path=str(place.run("second") / "done.json")), after=("first",)),
        job_of(bench, "broken", "raise SystemExit('it broke')"),
        job_of(bench, "behind", "", after=("broken",)),
    ]
    monkeypatch.setattr(bench.pool.Workplace, "command", lambda place, job: [sys.executable, *job.script])
    news: list[str] = []
    assert bench.pool.run_jobs(place, wanted, 1, news.append) == {"broken": "it broke", "behind": "needs broken"}
    assert all(place.done(job) for job in wanted[:3])
    began = [line.split()[1].strip(",") for line in news if line.startswith("began")]
    assert began.index("first") < began.index("long") < began.index("second")
    news.clear()
    bench.pool.run_jobs(place, wanted[:3], 1, news.append)
    assert news == []


def test_the_report_is_written_with_what_is_there(bench: Any, tmp_path: Path) -> None:
    bench.run.report(bench.pool.Workplace(tmp_path, "ci"), bench.protocol.jobs("ci"), {"cloud": "it broke"}, 0.1)
    ledger = json.loads((tmp_path / "heterogeneous.json").read_text())
    assert ledger["not_done"] == {"cloud": "it broke"}
    assert {"H0", "H1", "H2", "H3", "H4", "H5", "M1", "peers", "throughput"} <= {record["id"] for record in ledger["records"]}
