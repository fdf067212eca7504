"""The whole search: what it leaves behind, what it never touches, and what an interruption changes (nothing)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from samespace.cloud.data import make_split, open_dataset
from samespace.cloud.data.files import FileImages
from samespace.cloud.recipe import load_recipe
from samespace.cloud.search import Search, load_search, search
from samespace.cloud.search import workers as workers_module
from samespace.cloud.search.evaluate import Evaluator, Worth
from samespace.cloud.training import data as data_module
from samespace.edge.models import build_model, count
from samespace.edge.search import Architecture
from samespace.sdk.errors import ConfigError
from samespace.sdk.runtimes.onnx import open_session

Make = Callable[..., Search]


def candidates(folder: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    return {line["key"]: line for line in lines if line["kind"] == "candidate"}


def without_time(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    timed = ("seconds", "latency_ms")
    return {key: {name: value for name, value in one.items() if name not in timed} for key, one in found.items()}


@pytest.mark.export
def test_from_a_finished_run_to_trained_winners(make: Make, tmp_path: Path) -> None:
    settings = make(finalists={"seeds": [3]}, rewards=["R1", "R2"])
    out = tmp_path / "out"
    report = search(settings, out)
    assert json.loads((out / "report.json").read_text()) == report
    assert load_search(out / "search.toml") == settings

    found = candidates(out)
    assert 4 <= len(found) == report["candidates"]["evaluated"]
    assert report["candidates"]["per_minute"] > 0
    for one in found.values():
        network = build_model("mobile", Architecture.model_validate(one["architecture"]).arguments(settings.space))
        assert count(network, 8) == (one["macs"], one["params"])
        assert one["latency_ms"] > 0

    # The winner of each reward is the best of all that were evaluated.
    for reward, field in (("R1", "m_qq"), ("R2", "m_qg")):
        winner = next(one for one in report["winners"].values() if reward in one["rewards"])
        assert found[winner["key"]][field] == max(one[field] for one in found.values())
        session = open_session((out / "finalists" / f"{winner['key']}.onnx").read_bytes(), "winner", 1)
        assert session.get_outputs()[0].shape[1] == settings.space.dim
        assert winner["measured"]["file_bytes"] == (out / "finalists" / f"{winner['key']}.onnx").stat().st_size

    # Trained from scratch by an ordinary recipe, the control from the same weights.
    recipe = load_recipe(out / "retrain.toml")
    assert recipe.seed == 3
    for name, winner in report["winners"].items():
        control = recipe.models[f"{name}-control"]
        assert (control.compatible, control.start_as) == (False, name)
        assert control.arguments == recipe.models[name].arguments
        assert recipe.models[name].builder_arguments == Architecture.model_validate(winner["architecture"]).arguments(
            settings.space
        )
        trained = report["retrained"][name]["test"]
        assert trained["seeds"] == [3]
        assert trained["mean"]["retention"] == pytest.approx(trained["mean"]["m_qg"] / trained["mean"]["m_gg"])
    assert (out / "retrain" / "seed-3" / "matrices.json").exists()
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    pareto = json.loads((out / "pareto.json").read_text())
    assert [one["key"] for one in pareto["candidates"] if one["on_front"]] == report["front"]
    assert {name for one in pareto["candidates"] for name in one["finalist"]} == set(report["winners"])

    # Asked again, it has nothing left to do and says the same.
    before = (out / "candidates.jsonl").read_bytes()
    assert search(settings, out) == report
    assert (out / "candidates.jsonl").read_bytes() == before


@pytest.fixture
def hunted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search ends before the export of whole networks, which takes longer than all the rest."""
    from samespace.cloud.search import run as module

    class Weightless:
        def __init__(self, *arguments: Any) -> None:
            self.known: dict[str, Any] = {}

        def measure(self, ones: Sequence[Any]) -> None:
            from samespace.cloud.search.costs import Measured

            self.known |= {one.key: Measured(one.latency_ms, one.file_bytes) for one in ones}

    monkeypatch.setattr(module, "Whole", Weightless)


@pytest.mark.usefixtures("hunted")
def test_killed_and_resumed_it_finds_the_same(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make(rewards=["R1", "R3"])
    whole = search(settings, tmp_path / "whole")
    evaluate = Evaluator.evaluate

    for stop_after in (2, 3):
        done = 0

        def dying(self: Evaluator, one: Architecture, stop_after: int = stop_after) -> Worth:
            nonlocal done
            if done == stop_after:
                raise KeyboardInterrupt
            done += 1
            return evaluate(self, one)

        monkeypatch.setattr(Evaluator, "evaluate", dying)
        with pytest.raises(KeyboardInterrupt):
            search(settings, tmp_path / "killed")
    with (tmp_path / "killed" / "candidates.jsonl").open("a") as file:
        file.write('{"kind": "candidate", "key": "cut o')
    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    resumed = search(settings, tmp_path / "killed")

    def keys(report: dict[str, Any]) -> dict[str, str]:
        return {name: one["key"] for name, one in report["winners"].items()}

    assert keys(resumed) == keys(whole)
    assert resumed["front"] == whole["front"]
    assert without_time(candidates(tmp_path / "killed")) == without_time(candidates(tmp_path / "whole"))


@pytest.mark.usefixtures("hunted")
def test_no_picture_of_a_test_class_is_read(make: Make, partner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(partner / "recipe.toml")
    images = open_dataset(recipe.data)
    split = make_split(recipe.data, images)
    asked: set[int] = set()
    cached, load = data_module.cached_tensors, FileImages.load

    def spy(images: Any, indices: Sequence[int], *rest: Any, **more: Any) -> Any:
        asked.update(indices)
        return cached(images, indices, *rest, **more)

    def spy_load(self: FileImages, index: int) -> Any:
        asked.add(index)
        return load(self, index)

    monkeypatch.setattr(data_module, "cached_tensors", spy)
    monkeypatch.setattr(FileImages, "load", spy_load)
    search(make(rewards=["R2"]), tmp_path / "out")
    assert asked >= {*split.validation_query, *split.validation_gallery, *split.train}
    assert not asked & {*split.test_query, *split.test_gallery}
    labels = {images.items[index].label for index in (*split.test_query, *split.test_gallery)}
    assert not labels & {images.items[index].label for index in asked}


@pytest.mark.usefixtures("hunted")
def test_what_crashes_is_noted_and_passed_over(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, crashed = Evaluator.evaluate, []

    def sometimes(self: Evaluator, one: Architecture) -> Worth:
        if len(crashed) < 2:
            crashed.append(one.key)
            raise RuntimeError("out of memory\nand more")
        return evaluate(self, one)

    monkeypatch.setattr(Evaluator, "evaluate", sometimes)
    report = search(make(), tmp_path / "out")
    found = candidates(tmp_path / "out")
    assert [found[key]["error"] for key in crashed] == ["RuntimeError: out of memory"] * 2
    assert report["candidates"]["failed"] == 2
    assert not {one["key"] for one in report["winners"].values()} & set(crashed)
    assert not set(report["front"]) & set(crashed)
    # It is not tried again.
    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    search(make(), tmp_path / "out")
    assert candidates(tmp_path / "out") == found


@pytest.mark.usefixtures("hunted")
def test_when_all_crash_the_reason_is_said(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Evaluator, one: Architecture) -> Worth:
        raise ValueError("no good")

    monkeypatch.setattr(Evaluator, "evaluate", never)
    with pytest.raises(ConfigError, match=r"all \d+ candidates failed \(ValueError: no good\)"):
        search(make(), tmp_path / "out")


@pytest.mark.usefixtures("hunted")
def test_hard_limits_hold_for_all_that_is_evaluated(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[Architecture] = []
    evaluate = Evaluator.evaluate
    monkeypatch.setattr(Evaluator, "evaluate", lambda self, one: evaluated.append(one) or evaluate(self, one))
    settings = make(budget={"macs": 30_000, "params": 7_000, "file_bytes": 26_000})
    search(settings, tmp_path / "out")
    assert evaluated
    found = candidates(tmp_path / "out")
    for one in evaluated:
        macs, params = count(build_model("mobile", one.arguments(settings.space)), 8)
        assert (macs <= 30_000, params <= 7_000, found[one.key]["file_bytes"] <= 26_000) == (True, True, True)


@pytest.mark.usefixtures("hunted")
def test_a_pool_of_children_finds_what_one_process_finds(make: Make, tmp_path: Path) -> None:
    settings = make(rewards=["R2"], evolution={"generations": 1, "population": 3})
    alone = search(settings, tmp_path / "alone")
    several = search(settings.model_copy(update={"workers": 2}), tmp_path / "several")
    assert several["candidates"]["workers"] == 2
    assert without_time(candidates(tmp_path / "several")) == without_time(candidates(tmp_path / "alone"))
    assert several["front"] == alone["front"]


def test_a_child_that_dies_is_replaced_and_its_architecture_named(make: Make) -> None:
    script = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    width = json.loads(line)['architecture']['stem_width']\n"
        "    if width == 8: print('killed by the system', file=sys.stderr, flush=True); os._exit(9)\n"
        "    print(json.dumps({'value': width}), flush=True)\n"
    )
    import random
    import sys

    space = make().space
    rng = random.Random(0)
    asked = [space.sample(rng) for _ in range(12)]
    answers: dict[int, dict[str, Any]] = {}
    with workers_module.Children(2, [sys.executable, "-c", script]) as children:
        children.run("proxy", asked, answers.__setitem__)
    assert {one.stem_width for one in asked} == {4, 8}
    for index, one in enumerate(asked):
        if one.stem_width == 8:
            assert answers[index] == {"error": "the process that evaluated it ended with exit code 9: killed by the system"}
        else:
            assert answers[index] == {"value": 4}


@pytest.mark.usefixtures("hunted")
def test_another_search_in_the_same_folder_is_refused(make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    search(make(rewards=["R1"]), out)
    with pytest.raises(ConfigError, match=r"supernet.*steps.*--no-resume"):
        search(make(rewards=["R1"], supernet={"steps": 7}), out)
    with pytest.raises(ConfigError, match=r"candidates\.jsonl: .*--no-resume"):
        search(make(rewards=["R1"], evaluation={"bn_batches": 2}), out)
    # More of the same search uses what is known.
    before = candidates(out)
    longer = search(make(rewards=["R1"], evolution={"generations": 3}), out)
    assert longer["candidates"]["evaluated"] > len(before)
    assert before.items() <= candidates(out).items()
    search(make(rewards=["R1"], evaluation={"bn_batches": 2}), out, resume=False)
    assert safetensors.numpy.load_file(out / "supernet" / "models" / "supernet.safetensors")


def test_a_folder_of_something_else_is_left_alone(make: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds no search"):
        search(make(), tmp_path / "out", resume=False)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
