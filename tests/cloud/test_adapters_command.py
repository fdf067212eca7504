"""``samespace adapters`` between models that were really trained, alone and of unlike dimensions, up to the exported graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from typer.testing import CliRunner

from samespace.cloud.adapters.fit import METHODS, Material, fit, material_of, measured
from samespace.cloud.cli.adapters import app
from samespace.cloud.recipe import Recipe
from samespace.cloud.training import train
from samespace.export.formats.onnx import OnnxExporter
from samespace.export.graph import DeviceGraph
from samespace.export.run import RunModel, read_run
from samespace.sdk.adapter import read_adapter
from samespace.sdk.errors import ConfigError

Make = Callable[..., dict[str, Any]]
LENIENT = ["--margin", 100, "--flips", 100]


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture
def runs(_folder: Path, recipe_content: Make) -> tuple[Path, Path]:
    """An old model, and a wider one that was trained alone."""
    for name, dim in (("old", 8), ("new", 12)):
        content = recipe_content(name=name, steps=60)
        model = {**content["models"]["cloud"], "dim": dim}
        train(Recipe.model_validate({**content, "seed": dim, "models": {"cloud": model}}), _folder / name)
    return _folder / "old", _folder / "new"


@pytest.fixture
def material(runs: tuple[Path, Path]) -> Material:
    return material_of(*runs)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("direction", ["backward", "forward"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_the_two_models_comparable(material: Material, method: Any, direction: Any) -> None:
    few = {"network": {"steps": 150, "hidden": 32}, "pair": {"steps": 150, "hidden": 32}}.get(method, {})
    adapters = fit(material, method, direction, few)
    assert set(adapters) == ({"backward", "forward"} if method == "pair" else {direction})
    with_it, without = measured(material, adapters), measured(material, {})
    assert with_it.cell(1, 0).map.value > without.cell(1, 0).map.value
    # What needs no adapter is what it was.
    assert with_it.cell(0, 0) == without.cell(0, 0)
    assert with_it.cell(1, 1) == without.cell(1, 1)


def test_settings_of_another_method_are_refused(material: Material) -> None:
    with pytest.raises(ConfigError, match="ridge has no setting 'rank'; it has: penalty"):
        fit(material, "ridge", "backward", {"rank": 3})


def test_what_does_not_pass_is_not_written(runs: tuple[Path, Path], tmp_path: Path) -> None:
    """A network that learnt nothing maps new queries to where nothing is found."""
    broken = ["--method", "ridge", "--set", "penalty=1e9", "--margin", 0, "--flips", 0]
    result = run("fit", *runs, "-o", tmp_path / "a", *broken)
    assert result.exit_code in (1, 3)
    assert "nothing is written" in result.output
    assert not (tmp_path / "a").exists()
    forced = run("fit", *runs, "-o", tmp_path / "a", *broken, "--force", "to look at it")
    assert forced.exit_code == 0, forced.output
    saved = json.loads((tmp_path / "a/report.json").read_text())
    assert saved["forced"] == "to look at it"
    assert saved["verdict"]["outcome"] != "pass"
    assert read_adapter(tmp_path / "a/backward.safetensors").adapter_id == saved["adapters"]["backward"]


def test_side_information_comes_from_a_run(runs: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["--method", "network", "--direction", "forward", "--set", "steps=60", "--set", "hidden=16", "--side", runs[1]]
    result = run("fit", *runs, "-o", tmp_path / "a", *arguments, *LENIENT, "--force", "small")
    assert result.exit_code == 0, result.output
    assert read_adapter(tmp_path / "a/forward.safetensors").record.side_dim == 12


def test_embeddings_of_a_file_are_mapped(runs: tuple[Path, Path], material: Material, tmp_path: Path) -> None:
    run("fit", *runs, "-o", tmp_path / "a", *LENIENT, "--force", "small")
    np.savez(tmp_path / "new.npz", embeddings=material.new.query, labels=np.array(material.pictures.queries["class"]))
    result = run("apply", tmp_path / "a/backward.safetensors", tmp_path / "new.npz", "-o", tmp_path / "old.npz")
    assert result.exit_code == 0, result.output
    mapped = np.load(tmp_path / "old.npz")
    expected = read_adapter(tmp_path / "a/backward.safetensors").apply(material.new.query)
    np.testing.assert_array_equal(mapped["embeddings"], expected)
    assert list(mapped["labels"]) == material.pictures.queries["class"]


@pytest.mark.export
@pytest.mark.parametrize("method", ["ridge", "network"])
def test_a_folded_adapter_is_exported_with_its_model(
    runs: tuple[Path, Path], material: Material, tmp_path: Path, method: str
) -> None:
    settings = ["--set", "steps=60", "--set", "hidden=16"] if method == "network" else []
    run("fit", *runs, "-o", tmp_path / "a", "--method", method, *settings, *LENIENT, "--force", "small")
    file = tmp_path / "a/backward.safetensors"
    result = run("fold", runs[1], "cloud", file, "--space", runs[0], "-o", tmp_path / "folded")
    assert result.exit_code == 0, result.output
    folded = read_run(tmp_path / "folded")
    model = folded.models["cloud-adapted"]
    assert model.record.dim == folded.space.dim == 8
    assert folded.cloud.record == read_run(runs[0]).cloud.record
    assert folded.calibration is not None
    pictures = folded.calibration.prepared(model.record.preprocess)[:16]
    alone = exported(read_run(runs[1]).models["cloud"], pictures)
    np.testing.assert_allclose(exported(model, pictures), read_adapter(file).apply(alone), atol=1e-5)
    again = run("fold", runs[1], "cloud", file, "--space", runs[0], "-o", tmp_path / "folded")
    assert isinstance(again.exception, ConfigError)
    other = run("fold", runs[0], "cloud", file, "--space", runs[0], "-o", tmp_path / "other")
    assert "takes embeddings of" in str(other.exception)


def exported(model: RunModel, pictures: np.ndarray) -> np.ndarray:
    """What the model's ONNX artifact gives for prepared pictures."""
    files = OnnxExporter().convert(DeviceGraph(model.build(), model.record.preprocess), "fp32").files
    session = onnxruntime.InferenceSession(next(iter(files.values())), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pictures})[0]
