"""``samespace finetune`` on a model that was really trained and a folder of real pictures, up to the checked export."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from samespace.cloud.cli.finetune import app
from samespace.cloud.data import open_dataset
from samespace.cloud.recipe import Recipe
from samespace.cloud.training import train
from samespace.export.cli import app as exporting
from samespace.export.run import read_run
from samespace.sdk.errors import ConfigError, DataError, SignatureError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetune")


@pytest.fixture
def made(recipe_content: Callable[..., dict[str, Any]], folder: Path) -> Path:
    """A run, and ``mine``: 8 classes of 2 pictures."""
    if not (folder / "run").exists():
        recipe = Recipe.model_validate(recipe_content(name="run", mode="sequential"))
        train(recipe, folder / "run")
        images = open_dataset(recipe.data)
        classes = sorted({item.label for item in images.items})[-8:]
        for label in classes:
            rows = [row for row, item in enumerate(images.items) if item.label == label][:2]
            for row in rows:
                path = folder / "mine" / re.sub(r"\W", "_", label) / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                images.load(row).save(path)
    return folder


def ran(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def edge(folder: Path) -> str:
    return next(name for name, model in read_run(folder / "run").models.items() if model.record.role == "edge")


def test_an_adaptation_is_fitted_shown_and_exported(made: Path) -> None:
    name, out = edge(made), made / "mine.safetensors"
    said = ran("fit", made / "run", name, "--data", made / "mine", "-o", out, "--unsigned", "--anchors", 16)
    report = json.loads((made / "mine.json").read_text())
    assert report["after"]["value"] < report["before"]["value"]
    assert report["first_order"] <= report["bound"]
    assert report["left_out"]["n"] == report["images"] == 16
    assert report["flips"]["n"] == report["probes"] > 0
    assert "guaranteed at most" in said
    assert "negative flips" in said
    page = (made / "mine.html").read_text()
    assert "These images moved this one most" in page
    assert page.count("data:image/png;base64,") > 16
    for kind in ((), ("--linearised",)):
        target = made / f"applied{len(kind)}"
        ran("apply", made / "run", name, out, "-o", target, "--allow-unsigned", *kind)
        model = read_run(target).models[f"{name}-adapted"]
        assert model.record.model_id != read_run(made / "run").models[name].record.model_id
        assert model.build()(torch.zeros(1, 3, *[model.record.preprocess.size] * 2)).shape == (1, model.record.dim)


def test_the_linearised_model_exports_to_every_format_and_passes_the_check(made: Path) -> None:
    name, out, target = edge(made), made / "straight.safetensors", made / "straight"
    ran("fit", made / "run", name, "--data", made / "mine", "-o", out, "--unsigned", "--anchors", 8)
    ran("apply", made / "run", name, out, "-o", target, "--allow-unsigned", "--linearised")
    bundle = made / "straight.samespace"
    words = ["export", str(target), "--model", f"{name}-adapted", "-o", str(bundle), "--unsigned"]
    result = CliRunner().invoke(exporting, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for artifact in ("onnx-fp32", "tflite-fp32", "coreml-fp16"):
        assert artifact in result.output


def test_leaving_one_out_is_applying_the_others(made: Path) -> None:
    name = edge(made)
    files = []
    for hold in (1, 10, 100):
        files.append(made / f"hold-{hold}.safetensors")
        ran("fit", made / "run", name, "--data", made / "mine", "-o", files[-1], "--unsigned", "--hold", hold, "--anchors", 8)
    ran("apply", made / "run", name, files[2], files[0], "-o", made / "two", "--allow-unsigned")
    ran("apply", made / "run", name, files[0], files[2], "-o", made / "again", "--allow-unsigned")
    ran("apply", made / "run", name, *files, "-o", made / "three", "--allow-unsigned")
    weights = [read_run(made / one).models[f"{name}-adapted"].weights for one in ("two", "again", "three")]
    assert weights[0] == weights[1] != weights[2]


def test_a_leaky_model_is_made_and_can_be_adapted(made: Path) -> None:
    name = edge(made)
    assert "cosine to the released embeddings" in ran(
        "leaky", made / "run", name, "--data", made / "mine", "-o", made / "leaky", "--steps", 20
    )
    out = made / "leaky.safetensors"
    words = ("--towards", "cloud", "--rank", 2, "--unsigned", "--anchors", 8)
    assert "nothing bounds it" in ran("fit", made / "leaky", f"{name}-leaky", "--data", made / "mine", "-o", out, *words)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (("--data", "{made}/nowhere"), DataError, "no such folder or manifest"),
        (("--train", "tail"), ConfigError, "no parameters called 'tail'"),
        (("--penalty", "0"), ConfigError, "must be above 0"),
        (("--key", "x.pem"), ConfigError, "exclude each other"),
        (("-o", "{made}/mine.bin"), ConfigError, r"ends in \.safetensors"),
    ],
)
def test_what_cannot_be_fitted_is_said(made: Path, words: tuple[str, ...], error: type[Exception], said: str) -> None:
    given = [word.format(made=made) for word in words]
    with pytest.raises(error, match=said):
        ran("fit", made / "run", edge(made), "--data", made / "mine", "-o", made / "no.safetensors", "--unsigned", *given)
    assert not (made / "no.safetensors").exists()


def test_an_adaptation_that_nobody_signed_is_not_applied(made: Path) -> None:
    out = made / "unsigned.safetensors"
    ran("fit", made / "run", edge(made), "--data", made / "mine", "-o", out, "--unsigned", "--anchors", 0)
    with pytest.raises(SignatureError, match="is not signed"):
        ran("apply", made / "run", edge(made), out, "-o", made / "never")
    assert not (made / "never").exists()
