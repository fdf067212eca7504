"""Fine-tuning for int8 on real digits: a model that int8 breaks is mended, the cloud model stands still, runs resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from samespace.cloud.cli.quantise import app
from samespace.cloud.data import make_split, open_dataset
from samespace.cloud.evaluation import measure
from samespace.cloud.quantisation import Settings, quantise, quantise_recipe
from samespace.cloud.recipe import Recipe, load_recipe
from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.training import read_log, train
from samespace.export import DeviceGraph, TorchRuntime
from samespace.export.formats import exporter_class
from samespace.export.options import ExportOptions
from samespace.export.run import Run, read_run
from samespace.sdk.errors import ConfigError, DataError, IntegrityError
from samespace.sdk.identity import ModelRecord, digest
from samespace.sdk.runtimes.onnx import open_session

Make = Callable[..., dict[str, Any]]

ROOT = Path(__file__).parents[2]
#: A process that kills itself after a line of the log.
CHILD = """
import os, signal, sys
from samespace.cloud.training import log

left, write = int(sys.argv[1]), log.TrainingLog.write

def written(self, record):
    global left
    write(self, record)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

log.TrainingLog.write = written
from samespace.sdk.cli import main
main(["quantise", *sys.argv[2:]])
"""
SETTINGS = Settings(steps=80, learning_rate=2e-3, batch=32)
OPTIONS = ["--steps", "80", "--learning-rate", "2e-3", "--batch", "32"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def hard(_folder: Path, recipe_content: Make) -> Path:
    """A finished run whose phone model computes what it did, but no longer when its tensors are rounded: made once."""
    run = _folder / "hard"
    if not run.exists():
        train(Recipe.model_validate(recipe_content(steps=150, batch=32, seed=1)), run)
        _make_hard(run / "models", "phone")
    return run


def _make_hard(folder: Path, name: str) -> None:
    """Stretch some channels between two convolutions up to 160-fold, shrink others, and undo it in the second one."""
    record = ModelRecord.model_validate_json((folder / f"{name}.json").read_bytes())
    weights = safetensors.torch.load((folder / f"{name}.safetensors").read_bytes())
    for block in {key.removesuffix("first.1.weight") for key in weights if key.endswith("first.1.weight")}:
        factor = 10 ** torch.linspace(-2.2, 2.2, len(weights[f"{block}first.1.weight"]))
        weights[f"{block}first.1.weight"] *= factor
        weights[f"{block}first.1.bias"] *= factor
        weights[f"{block}second.0.weight"] /= factor.reshape(1, -1, 1, 1)
    data = safetensors.torch.save(weights)
    (folder / f"{name}.safetensors").write_bytes(data)
    (folder / f"{name}.json").write_text(record.model_copy(update={"weights_sha256": digest(data)}).model_dump_json())


@pytest.fixture
def mended(hard: Path, _folder: Path) -> Path:
    """The fine-tuned run; fine-tuned once."""
    assert quantise(hard, "phone", _folder / "mended", SETTINGS) is not None
    return _folder / "mended"


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _map(cost: dict[str, Any], when: str, split: str, kind: str) -> float:
    return cost[when][split][kind]["map"]["value"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_int8_breaks_is_mended(hard: Path, mended: Path, split: str) -> None:
    cost = json.loads((mended / "quantisation.json").read_bytes())["phone"]
    float_before, int8_before = (_map(cost, "before", split, kind) for kind in ("float", "int8"))
    float_after, int8_after = (_map(cost, "after", split, kind) for kind in ("float", "int8"))
    assert int8_before < float_before - 0.15, "the model is hard to quantise"
    assert int8_after > float_before - 0.04
    assert float_after > float_before - 0.04, "the float model stays in the space"
    assert cost["bits"] == {"weights": 8, "activations": 8}


def test_the_simulation_is_that_of_float_models_that_were_measured(hard: Path, mended: Path) -> None:
    cost = json.loads((mended / "quantisation.json").read_bytes())["phone"]
    for when, run in (("before", hard), ("after", mended)):
        measured = {
            cell["split"]: cell["metrics"]
            for cell in json.loads((run / "matrices.json").read_bytes())
            if (cell["query"], cell["gallery"], cell["adapter"]) == ("phone", "cloud", None)
        }
        for split in ("validation", "test"):
            assert cost[when][split]["float"]["map"]["value"] == pytest.approx(measured[split]["map"]["value"], abs=1e-3)


@pytest.mark.export
def test_the_real_artifact_is_mended_too(hard: Path, mended: Path, recipe_content: Make) -> None:
    """int8 by the ONNX exporter, calibrated on the run's own pictures, as ``samespace export`` makes it."""
    config = Recipe.model_validate(recipe_content()).data
    images = open_dataset(config)
    split = make_split(config, images)
    labels = [[images.items[index].label for index in part] for part in (split.test_query, split.test_gallery)]

    def retrieval(run: Run, kind: str) -> float:
        model, cloud = run.models["phone"], run.cloud
        query, gallery = (
            one.record.preprocess.batch([images.encoded(index) for index in part])
            for one, part in ((model, split.test_query), (cloud, split.test_gallery))
        )
        stored = TorchRuntime(cloud.build(), cloud.record).run(gallery)
        rows = TorchRuntime(model.build(), model.record).run(query) if kind == "float" else _int8(run, query)
        return measure(rows, stored, *labels)["map"].value

    before, after = read_run(hard), read_run(mended)
    assert retrieval(before, "int8") < retrieval(before, "float") - 0.1
    assert retrieval(after, "int8") > retrieval(before, "float") - 0.05


def _int8(run: Run, pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    model = run.models["phone"]
    assert run.calibration is not None
    options = ExportOptions(calibration=run.calibration.prepared(model.record.preprocess))
    graph = DeviceGraph(model.build(), model.record.preprocess)
    made = exporter_class("onnx")().convert(graph, "int8", options)
    return open_session(made.files[""], "int8").run([made.output], {made.input.name: pictures})[0]


def test_the_cloud_model_and_the_run_stay_as_they_are(hard: Path, mended: Path, tmp_path: Path) -> None:
    before = _files(hard)
    quantise(hard, "phone", tmp_path / "out", Settings(steps=2, batch=16))
    assert _files(hard) == before
    for file in ("models/cloud.safetensors", "models/cloud.json", "space.json"):
        assert (mended / file).read_bytes() == before[file]
    assert (mended / "models/phone.safetensors").read_bytes() != before["models/phone.safetensors"]


def test_the_result_is_a_float_model_of_the_same_architecture(hard: Path, mended: Path) -> None:
    old, new = read_run(hard).models["phone"], read_run(mended).models["phone"]
    assert (new.record.family, new.record.arguments) == (old.record.family, old.record.arguments)
    assert new.record.model_id != old.record.model_id
    first, second = (safetensors.torch.load(one.weights) for one in (old, new))
    assert {key: (value.shape, value.dtype) for key, value in first.items()} == {
        key: (value.shape, value.dtype) for key, value in second.items()
    }
    statistics = [key for key in first if "running" in key or "num_batches" in key]
    assert statistics
    assert all(torch.equal(first[key], second[key]) for key in statistics), "batch norms stand still"
    assert read_run(mended).calibration is not None


def test_killed_and_resumed_it_ends_with_the_same_weights(hard: Path, mended: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = ["5", str(hard), "--model", "phone", "-o", str(out), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    died = subprocess.run([sys.executable, "-c", CHILD, *arguments], env=environment, capture_output=True, timeout=240)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (out / "models").exists()
    assert (out / "state").exists(), "there is something to resume"
    quantise(hard, "phone", out, SETTINGS)
    for file in ("models/phone.safetensors", "quantisation.json", "matrices.json"):
        assert (out / file).read_bytes() == (mended / file).read_bytes(), file
    logs = [[{**record, "seconds": 0} for record in read_log(run / "log.jsonl")] for run in (out, mended)]
    assert logs[0] == logs[1]


def test_without_quantise_it_goes_on_in_float(hard: Path, tmp_path: Path) -> None:
    content = quantise_recipe(hard, "phone", Settings(steps=1, learning_rate=1e-12, batch=16)).resolved()
    content["models"]["phone"]["quantise"] = None
    run = train(parse_recipe(content, tmp_path / "recipe.toml"), tmp_path / "out")
    assert run is not None
    old, new = (safetensors.torch.load((path / "models/phone.safetensors").read_bytes()) for path in (hard, run.path))
    assert all(torch.allclose(old[key], new[key]) for key in old if "running" not in key and "num_batches" not in key)
    assert not (run.path / "quantisation.json").exists()


def test_the_recipe_counts_the_weights_not_the_place(hard: Path, mended: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(hard, moved)
    here, there = (quantise_recipe(run, "phone", SETTINGS) for run in (hard, moved))
    assert here.digest == there.digest == load_recipe(mended / "recipe.toml", "full").digest
    assert quantise_recipe(hard, "phone", Settings(**{**vars(SETTINGS), "weight_bits": 7})).digest != here.digest


def test_a_start_that_changed_is_refused(hard: Path, tmp_path: Path) -> None:
    recipe = quantise_recipe(hard, "phone", SETTINGS)
    phone = recipe.models["phone"].model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="'phone' is not the one that this run was started with"):
        train(recipe.model_copy(update={"models": {**recipe.models, "phone": phone}}), tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("watch", "no model is called 'watch'; there are: cloud, control, phone"),
        ("cloud", "is the cloud model, which stays in float; choose an edge model: phone"),
        ("control", "is a control, which is in no space with the cloud model; choose an edge model: phone"),
    ],
)
def test_a_model_that_cannot_be_fine_tuned_is_refused(hard: Path, tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        quantise(hard, model, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_run_itself_is_not_overwritten(hard: Path) -> None:
    before = _files(hard)
    for resume in (True, False):
        with pytest.raises(ConfigError, match="stays as it is; name another folder"):
            quantise(hard, "phone", hard, SETTINGS, resume=resume)
    assert _files(hard) == before


def test_a_folder_of_another_fine_tuning_is_refused(hard: Path, mended: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds a run of another recipe, which differs in steps"):
        quantise(hard, "phone", mended, Settings(**{**vars(SETTINGS), "steps": 81}))


def test_a_run_without_its_recipe_is_refused(hard: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(hard, run)
    (run / "recipe.toml").write_text("[models.control]\ncompatible = false\n")
    with pytest.raises(ConfigError, match="is no recipe of a run"):
        quantise(run, "phone", tmp_path / "out", SETTINGS)
    (run / "recipe.toml").unlink()
    with pytest.raises(ConfigError, match=r"recipe\.toml: no such file"):
        quantise(run, "phone", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_pictures_that_are_gone_are_named(hard: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(hard, run)
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(re.sub(r'root = ".*"', f'root = "{tmp_path / "nowhere"}"', text))
    with pytest.raises(DataError, match="nowhere does not exist"):
        quantise(run, "phone", tmp_path / "out", SETTINGS)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("phone", {"start_from": None}, "quantise fine-tunes a model that is trained already: name its run with start_from"),
        ("phone", {"start_as": "cloud"}, "leave out start_as and shares"),
        ("phone", {"quantise": {"weight_bits": 1}}, "models.phone.quantise.weight_bits"),
        ("phone", {"quantise": {"bits": 8}}, "unknown key"),
        ("phone", {"losses": {"stage_features": {}, "regression": {}}}, "stage_features looks at feature maps"),
        ("phone", {"arguments": {"width": 99}}, "models.phone.arguments is not that of the run"),
        ("watch", {"start_as": "phone"}, "which goes on from a finished run; give this one start_from"),
        ("cloud", {"run": None, "start_from": "HARD"}, "start_from is for edge models"),
    ],
)
def test_recipes_that_contradict_themselves(
    hard: Path, tmp_path: Path, model: str, change: dict[str, Any], message: str
) -> None:
    content = quantise_recipe(hard, "phone", SETTINGS).resolved()
    phone = {**content["models"]["phone"], "start_from": None, "quantise": None, "weights_sha256": None}
    change = {key: str(hard) if value == "HARD" else value for key, value in change.items()}
    content["models"][model] = {**content["models"].get(model, phone), **change}
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_recipe(content, tmp_path / "recipe.toml")


def test_the_command_line(hard: Path, mended: Path) -> None:
    runner = CliRunner()
    arguments = [str(hard), "--model", "phone", "-o", str(mended), *OPTIONS]
    shown = runner.invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "before" in shown.output
    assert f"next: samespace export {mended} --model phone" in shown.output
    result = runner.invoke(app, [*arguments, "--json"])
    answer = json.loads(result.stdout)
    assert answer["after"] == json.loads((mended / "quantisation.json").read_bytes())["phone"]["after"]
    assert runner.invoke(app, [str(hard), "--model", "phone"]).exit_code == 2


def test_the_guide_runs(hard: Path, tmp_path: Path) -> None:
    shutil.copytree(hard, tmp_path / "runs" / "emoji")
    guide = (ROOT / "docs" / "quantisation.md").read_text()
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": bin_folder + os.pathsep + os.environ["PATH"]}
    lines = [
        line for block in re.findall(r"^```bash\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    # Exports are run by tests of their own; so is an environment with ExecuTorch.
    commands = [line for line in lines if line.startswith("samespace quantise")]
    assert commands
    for command in commands:
        result = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    (settings,) = re.findall(r"^```toml\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    content = settings.replace('root = "photos"', f'root = "{load_recipe(hard / "recipe.toml", "full").data.root}"')
    (tmp_path / "recipe.toml").write_text(content)
    assert load_recipe(tmp_path / "recipe.toml", "full").models["phone"].quantise is not None
