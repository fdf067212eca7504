"""The client library alone: small, and importing it loads no runtime."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: What the base install must not bring, and importing samespace.sdk must not load.
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "coremltools",
    "tensorflow",
    "tflite_runtime",
    "ai_edge_litert",
    "litert_torch",
    "fastapi",
)


@pytest.fixture(scope="module")
def base_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", ROOT]
    subprocess.run(command, check=True, timeout=280)
    return python


def test_base_install_brings_no_framework(base_python: Path) -> None:
    listing = subprocess.run([base_python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    installed = {package["name"].lower().replace("-", "_") for package in json.loads(listing.stdout)}
    assert "samespace" in installed
    assert not installed & set(HEAVY)


def test_base_install_runs_the_command_line(base_python: Path) -> None:
    result = subprocess.run([base_python.parent / "samespace", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "check" in result.stdout


def test_a_command_whose_extra_is_missing_names_it(base_python: Path) -> None:
    result = subprocess.run(
        [base_python.parent / "samespace", "train", "recipe.toml", "-o", "run"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "pip install 'samespace[train]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_importing_the_sdk_loads_no_runtime() -> None:
    # In the full environment, where all of them could be imported.
    script = (
        "import sys, time; start = time.perf_counter(); import samespace.sdk; seconds = time.perf_counter() - start; "
        f"print(seconds, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, loaded = result.stdout.split(" ", 1)
    print(f"import samespace.sdk: {float(seconds):.2f} s")
    assert loaded.strip() == "[]"
