"""The benchmark of upgrades: its protocol, its arithmetic, and that its crash test sees what it looks for."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.cloud.recipe import Recipe
from samespace.sdk.evidence import read_ledger
from samespace.sdk.metrics import average_precision

ROOT = Path(__file__).parents[2] / "benchmarks"
#: Modules of this benchmark come first; what it takes from others does not change their names.
FOLDERS = [ROOT / name for name in ("upgrades", "heterogeneous", "gallery")]
NAMES = {path.stem for folder in FOLDERS for path in folder.glob("*.py")}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """``bench("protocol")``: a module of a folder that is no package."""
    before, path = {name: sys.modules.pop(name, None) for name in NAMES}, list(sys.path)
    sys.path[:0] = [str(folder) for folder in FOLDERS]
    yield importlib.import_module
    sys.path[:] = path
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize("size", ["full", "small", "ci"])
def test_every_run_is_a_recipe_and_builds_on_earlier_ones(bench: Any, size: str) -> None:
    made: set[str] = set()
    for run in bench("protocol").runs(size, seed=1):
        content = {**run.recipe, "models": {n: m for n, m in run.recipe["models"].items() if "run" not in m}}
        if run.upgrades is None and len(content["models"]) == len(run.recipe["models"]) and "teachers" not in content:
            Recipe.model_validate(content)
        needed = [run.upgrades, *(Path(path).name for path in run.recipe.get("teachers", []))]
        needed += [Path(model["run"]).name for model in run.recipe["models"].values() if "run" in model]
        assert {name for name in needed if name} <= made, run.name
        assert run.name not in made
        made.add(run.name)
    assert len(made) >= 27


def test_treatments_of_an_update_begin_with_the_same_weights(bench: Any) -> None:
    (update,) = (run for run in bench("protocol").runs("full", seed=0) if run.name == "flips-update")
    models = {name: model for name, model in update.recipe["models"].items() if name != "cloud"}
    starts = {model.get("start_as", name) for name, model in models.items()}
    assert starts == {"none", "wide-none"}
    assert all(model["arguments"] == models[model.get("start_as", name)]["arguments"] for name, model in models.items())


def test_a_curve_goes_from_the_old_gallery_to_the_new_one(bench: Any) -> None:
    refresh, generator = bench("refresh"), np.random.default_rng(0)
    rows = generator.normal(size=(3, 40, 8))
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
    labels = [f"class {index % 5}" for index in range(40)]
    genuine = np.equal.outer(labels, labels)
    old, new = ((rows[0] @ rows[side].T).astype(np.float64) for side in (1, 2))
    order = refresh.orders(generator.random(40), seed=0)
    assert all(sorted(items) == list(range(40)) for items in order.values())
    curve = refresh.curve(old, new, genuine, order["uncertainty"])
    for point, side in ((0, 1), (-1, 2)):
        np.testing.assert_allclose(curve[point], average_precision(rows[0], rows[side], labels, labels), atol=1e-6)
    assert not np.allclose(curve[5], curve[0])


def test_a_setting_is_chosen_by_flips_among_those_that_cost_little(bench: Any) -> None:
    def pair(error: float, flips: float) -> tuple[np.ndarray, np.ndarray]:
        places = np.arange(1000)
        return (places < 1000 * error).astype(float)[None], (places < 1000 * flips).astype(float)[None]

    chosen, plain = bench("flips").chosen, pair(0.4, 0.08)
    assert chosen(plain, {"a": pair(0.40, 0.06), "b": pair(0.404, 0.05), "dear": pair(0.41, 0.01)}) == "b"
    assert chosen(plain, {"a": pair(0.43, 0.01), "b": pair(0.42, 0.06)}) == "b", "all are dear: the one that errs least"


@pytest.mark.database
def test_kills_leave_what_was_acknowledged_and_a_changed_vector_is_seen(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = bench("crash")
    # A folder for a server that may run as another user: pytest's own folders are for this user only.
    with tempfile.TemporaryDirectory(prefix="samespace-test-") as name:
        monkeypatch.setenv("SAMESPACE_CONFIG_DIR", name)
        Path(name).chmod(0o755)
        world = crash.toy_upgrade(Path(name))
        seen = crash.crash(Path(name) / "a", world, rounds=3, seed=1)
        assert dict(seen.rounds) == {"client": 1, "service": 1, "database": 1}
        assert not any(seen.wrong.values()), seen.said
        assert seen.checked
        made = crash.vector_of
        monkeypatch.setattr(crash, "vector_of", lambda model, item_id, version: made(model, item_id, version + 1))
        assert crash.crash(Path(name) / "b", world, rounds=1, seed=1).changed


def test_the_ledger_has_every_claim_and_says_why_one_fails() -> None:
    file = ROOT / "results" / "upgrades.json"
    records = {record.id: record for record in read_ledger(file)}
    wanted = {f"A{n}" for n in (1, 2, 4, 5)} | {"A3-bct", "A3-ract"} | {f"P{n}" for n in range(1, 6)} | {"B1", "B2"}
    assert wanted | {"chain-bct", "chain-combined", "thresholds", "clusters", "cost", "crash"} <= set(records)
    assert all(record.holds or record.reason for record in records.values())
    assert all(len(record.seeds) >= 3 and record.n > 0 for record in records.values() if record.ci95)
    assert {"methods", "chains", "adapters", "flips", "refresh", "plots"} <= set(json.loads(file.read_text())["tables"])
