"""What a user gets wrong: one clear message that names the culprit, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SAMESPACE = str(Path(sys.executable).with_name("samespace"))
RECIPE = """
name = "photos"
steps = 2
batch = 4
[data]
kind = "folder"
root = "photos"
[models.cloud]
role = "cloud"
family = "residual"
dim = 8
preprocess = { size = 16 }
arguments = { width = 4, stages = 1 }
[models.phone]
role = "edge"
family = "residual"
dim = 8
preprocess = { size = 16 }
arguments = { width = 4, stages = 1 }
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200"}
    environment.pop("SAMESPACE_SIZE", None)
    return subprocess.run([SAMESPACE, *arguments], cwd=folder, capture_output=True, text=True, env=environment, timeout=200)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line that says what is wrong, on stderr."""
    assert result.returncode not in (0, 3), result.stdout
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0], errors[0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a recipe and a small folder data set, six classes of four pictures."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    for label in range(6):
        for number in range(4):
            path = tmp_path / "photos" / f"class-{label}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (40 * label, 60 * number, 99)).save(path)
    return tmp_path


def test_the_good_recipe_trains(photos: Path) -> None:
    # So that the refusals below are for their own reason.
    result = run(photos, "train", "recipe.toml", "-o", "run")
    assert result.returncode == 0, result.stderr
    assert (photos / "run" / "models" / "phone.safetensors").exists()


def test_wrong_recipe_path(photos: Path) -> None:
    refused(run(photos, "train", "nope.toml", "-o", "run"), "nope.toml")
    assert not (photos / "run").exists()


def test_misspelt_recipe_key(photos: Path) -> None:
    (photos / "recipe.toml").write_text(RECIPE.replace("batch = 4", "bacth = 4"))
    refused(run(photos, "train", "recipe.toml", "-o", "run"), "bacth", "batch")
    assert not (photos / "run").exists()


def test_dimension_mismatch_between_edge_and_cloud(photos: Path) -> None:
    head, phone = RECIPE.split("[models.phone]")
    (photos / "recipe.toml").write_text(head + "[models.phone]" + phone.replace("dim = 8", "dim = 16"))
    refused(run(photos, "train", "recipe.toml", "-o", "run"), "phone", "16", "8")
    assert not (photos / "run").exists()


def test_wrong_image_folder(photos: Path) -> None:
    shutil.rmtree(photos / "photos")
    refused(run(photos, "train", "recipe.toml", "-o", "run"), "photos")


def test_empty_image_folder(photos: Path) -> None:
    shutil.rmtree(photos / "photos")
    (photos / "photos").mkdir()
    refused(run(photos, "train", "recipe.toml", "-o", "run"), "photos")


def test_a_class_with_one_image(photos: Path) -> None:
    for path in sorted((photos / "photos" / "class-3").iterdir())[1:]:
        path.unlink()
    refused(run(photos, "train", "recipe.toml", "-o", "run"), "class-3")


def test_a_broken_jpeg_is_named_before_training_starts(photos: Path) -> None:
    path = photos / "photos" / "class-2" / "1.jpg"
    path.write_bytes(path.read_bytes()[:200])
    refused(run(photos, "train", "recipe.toml", "-o", "run"), "1.jpg")
    assert not (photos / "run" / "models").exists()


def test_export_of_what_is_no_run(tmp_path: Path) -> None:
    refused(run(tmp_path, "export", "nowhere", "-o", "bundles", "--unsigned"), "nowhere")
    assert not (tmp_path / "bundles").exists()


def test_check_of_what_is_no_bundle(tmp_path: Path) -> None:
    refused(run(tmp_path, "check", "nowhere.samespace"), "nowhere.samespace")


def demo_bundle(demo: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo[0] / "bundles" / "phone.samespace", tmp_path / "phone.samespace"))


@pytest.mark.export
@pytest.mark.database
@pytest.mark.timeout(900)
class TestWithTheDemosBundles:
    """Faults that take a real bundle or a real service."""

    @pytest.fixture(autouse=True)
    def trusting(self, demo: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(demo[0] / "config"))

    def test_a_bundle_of_a_newer_format(self, demo: tuple[Path, str], tmp_path: Path) -> None:
        bundle = demo_bundle(demo, tmp_path)
        manifest = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
        (bundle / "signature.json").unlink()
        refused(run(tmp_path, "check", str(bundle), "--allow-unsigned"), "99", "upgrade")

    def test_a_changed_artifact(self, demo: tuple[Path, str], tmp_path: Path) -> None:
        bundle = demo_bundle(demo, tmp_path)
        artifact = next((bundle / "artifacts").glob("*.onnx"))
        data = bytearray(artifact.read_bytes())
        data[len(data) // 2] ^= 1
        artifact.write_bytes(data)
        refused(run(tmp_path, "check", str(bundle)), artifact.name)

    def test_an_unknown_signer(self, demo: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "other"))
        refused(run(tmp_path, "check", str(demo_bundle(demo, tmp_path))), "keys trust")

    def test_the_service_is_down(self, demo: tuple[Path, str], tmp_path: Path) -> None:
        bundle = demo_bundle(demo, tmp_path)
        image = next((demo[0] / "photos" / "query").rglob("*.png"))
        result = run(tmp_path, "gallery", "search", str(image), "--gallery", "http://127.0.0.1:9", "--bundle", str(bundle))
        refused(result, "http://127.0.0.1:9")

    def test_a_database_folder_of_a_running_service(self, demo: tuple[Path, str], tmp_path: Path) -> None:
        bundle = str(demo[0] / "bundles" / "cloud.samespace")
        command = [SAMESPACE, "gallery", "serve", "--bundle", bundle, "--data", str(tmp_path / "data"), "--port", "0"]
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert first.stdout is not None
            assert any("ready" in line for line in first.stdout)
            refused(run(tmp_path, *command[1:]), "data", str(first.pid))
        finally:
            first.send_signal(signal.SIGTERM)
            first.wait(60)
