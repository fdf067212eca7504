"""Reading a run directory, and what ``samespace export`` says of one that cannot be exported. No conversions here."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

from samespace.export import load_model, read_run
from samespace.export.mistakes import resized_without_antialias
from samespace.export.torch_runtime import TorchRuntime
from samespace.sdk.bundle import Bundle
from samespace.sdk.cli import main
from samespace.sdk.errors import ConfigError, IntegrityError
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.signing import SigningKey


class MakeRun(Protocol):
    def __call__(self, *names: str, control: str | None = None) -> Path: ...


@pytest.fixture(scope="module")
def good(make_run: MakeRun) -> Path:
    return make_run("mixer", "residual", control="residual")


@pytest.fixture
def broken(good: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(good, tmp_path / "run"))


def test_controls_are_left_out_unless_they_are_named(good: Path) -> None:
    run = read_run(good)
    assert [model.name for model in run.choose(())] == ["cloud", "mixer"]
    assert [model.name for model in run.choose(("residual", "residual"))] == ["residual"]
    assert run.cloud.name == "cloud"


def test_models_are_rebuilt_with_their_weights(good: Path) -> None:
    model = read_run(good).models["mixer"]
    tensors = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    rows = [TorchRuntime(model.build(), model.record).run(tensors) for _ in range(2)]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_allclose(np.linalg.norm(rows[0], axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda p: shutil.rmtree(p / "models"), ConfigError, "holds no trained model"),
        (lambda p: (p / "space.json").unlink(), ConfigError, r"space\.json: is missing"),
        (lambda p: (p / "space.json").write_text("{}"), ConfigError, r"space\.json: no space record: name"),
        (lambda p: (p / "models" / "cloud.json").unlink(), ConfigError, "founder m-"),
        (lambda p: (p / "models" / "mixer.json").write_text("{"), ConfigError, r"mixer\.json: no model record"),
        (lambda p: (p / "models" / "mixer.safetensors").unlink(), ConfigError, r"mixer\.safetensors: is missing"),
        (lambda p: _cut(p / "models" / "mixer.safetensors"), IntegrityError, r"mixer\.safetensors: cut off or changed"),
        (lambda p: shutil.rmtree(p / "probes" / "images"), ConfigError, "holds no probe image"),
        (
            lambda p: (p / "probes" / "probes.json").write_text('{"labels": ["a"]}'),
            ConfigError,
            r"probes\.json: expected .* 64 labels",
        ),
        (lambda p: _cut(p / "probes" / "gallery.safetensors"), ConfigError, "no tensor 'embeddings'"),
        (lambda p: (p / "matrices.json").unlink(), ConfigError, r"matrices\.json: is missing"),
        (lambda p: (p / "recipe.toml").write_text("[models"), ConfigError, r"recipe\.toml: broken TOML"),
    ],
)
def test_an_incomplete_run_is_refused_with_the_file_at_fault(damage, error: type[Exception], said: str, broken: Path) -> None:
    damage(broken)
    with pytest.raises(error, match=said):
        read_run(broken)


def test_weights_of_another_network_are_refused(good: Path) -> None:
    run = read_run(good)
    other = run.models["mixer"].record.model_copy(update={"weights_sha256": run.models["cloud"].record.weights_sha256})
    with pytest.raises(IntegrityError, match="do not fit its family 'mixer'"):
        load_model(other, run.models["cloud"].weights)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "-o", "x"], "nowhere: no such run directory"),
        (["RUN", "--model", "tablet", "-o", "x"], "no model is called 'tablet'; there are: cloud, mixer, residual"),
        (["RUN", "-o", "all.samespace"], "has 2 models to export (cloud, mixer); name one with --model"),
        (["RUN", "-o", "x", "--artifact", "pt"], "no export format is called 'pt'"),
        (["RUN", "-o", "x", "--unsigned", "--key", "k.pem"], "--unsigned and --key exclude each other"),
        (["RUN", "-o", "x", "--key", "k.pem"], "k.pem: no such key file"),
        (["RUN", "-o", "x"], "samespace keys new default"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line_and_writes_nothing(
    arguments: list[str],
    said: str,
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "config"
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(config))
    if "keys new" not in said:
        SigningKey.new().save(config / "keys" / "default.pem")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with pytest.raises(SystemExit) as caught:
        main(["export", *(str(good) if word == "RUN" else word for word in arguments)])
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert list(work.iterdir()) == []


def test_a_bundle_named_like_a_model_is_that_models(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "residual.samespace"
    with pytest.raises(SystemExit) as caught:
        main(["export", str(good), "-o", str(target), "--artifact", "onnx", "--unsigned", "--json"])
    assert caught.value.code == 0, capsys.readouterr().err
    manifest = Bundle.open(target, allow_unsigned=True).manifest
    assert manifest.model_id == read_run(good).models["residual"].record.model_id


def test_resizing_without_antialias_takes_single_pixels() -> None:
    """A checkerboard of single pixels averages to grey with antialias; four neighbours at a time, it stays black and white."""
    board = np.indices((96, 96)).sum(0) % 2 * 255
    file = io.BytesIO()
    Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8)).save(file, "PNG")
    preprocess = Preprocess(size=32, fit="pad")
    assert np.abs(preprocess(file.getvalue()).astype(int) - 128).max() <= 16
    assert set(np.unique(resized_without_antialias(preprocess, file.getvalue()))) == {0, 255}


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_resizing_without_antialias_keeps_the_frame(fit: str) -> None:
    """On a smooth picture both resizes agree, so neither is shifted, cropped or padded otherwise than the other."""
    x, y = np.meshgrid(np.linspace(0, 255, 90), np.linspace(0, 255, 60))
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8)).save(file, "PNG")
    preprocess = Preprocess(size=32, fit=fit)  # type: ignore[arg-type]
    difference = np.abs(preprocess(file.getvalue()).astype(int) - resized_without_antialias(preprocess, file.getvalue()))
    assert difference.max() <= 4


def test_labels_are_optional(broken: Path) -> None:
    (broken / "probes" / "probes.json").unlink()
    (broken / "probes" / "gallery.json").unlink()
    run = read_run(broken)
    assert run.probe_labels is None
    assert run.gallery_labels is None


def test_matrices_may_be_one_object(broken: Path) -> None:
    (broken / "matrices.json").write_text(json.dumps({"a": 1}))
    assert read_run(broken).matrices == [{"a": 1}]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
