"""The commands of docs/upgrades.md run, in order, over runs of digits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from samespace.cloud.recipe import Recipe, load_recipe
from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.training import train
from samespace.cloud.training.data import load_training_data
from samespace.cloud.upgrades.verdict import Bars

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "upgrades.md").read_text()


def test_the_guide_runs(recipe_content: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    content = recipe_content(name="mugs", mode="sequential")
    cloud = content["models"]["cloud"]
    train(Recipe.model_validate({**content, "models": {"cloud": cloud}}), runs / "mugs")
    train(Recipe.model_validate({**content, "name": "alone", "seed": 1, "models": {"cloud": cloud}}), runs / "mugs-alone")
    models = {"old": {"role": "cloud", "run": str(runs / "mugs")}, "cloud": cloud}
    train(parse_recipe({**content, "name": "mugs-2", "models": models}, tmp_path / "recipe.toml"), runs / "mugs-2")
    np.savez(
        tmp_path / "new.npz",
        embeddings=safetensors.numpy.load_file(runs / "mugs-alone/embeddings/cloud.safetensors")["query"],
    )
    (settings,) = re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    (tmp_path / "fleet.toml").write_text(settings)
    bin_folder = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "SAMESPACE_CONFIG_DIR": str(tmp_path / "config"),
        "PATH": bin_folder + os.pathsep + os.environ["PATH"],
    }
    blocks = re.findall(r"^```bash\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    with served(tmp_path, environment) as gallery:
        for command in [line for block in blocks for line in block.splitlines()]:
            there = f" --gallery {gallery}" if command.startswith("samespace gallery") else ""
            # Models that saw a dozen steps may fail their bars, but for the command's own reasons.
            forced = "adapters fit" in command or "gallery promote" in command
            judged = forced or "samespace report" in command
            for again in ("", ' --force "shows the next step"')[: 1 + forced]:
                result = run(command + there + again, tmp_path, environment)
                assert result.returncode in ((0, 1, 3) if judged and not again else (0,)), f"{result.stdout}\n{result.stderr}"
                assert "error:" not in result.stderr or "must not go live" in result.stderr
    for made in (
        "upgrade.html",
        "upgrade.json",
        "adapters/forward.safetensors",
        "for-old-gallery.npz",
        "runs/folded/space.json",
    ):
        assert (tmp_path / made).exists()


@contextmanager
def served(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """The reader's gallery: what ``mugs`` embedded of ``photos``; ``mugs-2`` is exported beside it."""
    data = load_training_data(load_recipe(folder / "runs" / "mugs" / "recipe.toml", "full"))
    (folder / "photos").mkdir()
    for index in data.split.test_gallery:
        (folder / "photos" / f"{index}.png").write_bytes(data.images.encoded(index))
    ready(run("samespace keys new default", folder, environment))
    for name in ("mugs", "mugs-2"):
        ready(run(f"samespace export runs/{name} --model cloud --formats onnx -o {name}.samespace", folder, environment))
    words = [str(Path(sys.executable).parent / "samespace"), "gallery", "serve", "--memory", "--json", "--port", "0"]
    service = subprocess.Popen(
        [*words, "--bundle", "mugs.samespace"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert service.stdout is not None
        url = json.loads(service.stdout.readline())["url"]
        ready(run(f"samespace gallery add photos --gallery {url} --bundle mugs.samespace", folder, environment))
        yield url
    finally:
        service.terminate()
        service.communicate(timeout=60)


def ready(ended: subprocess.CompletedProcess[str]) -> None:
    assert ended.returncode == 0, ended.stderr


def run(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_the_guide_tells_the_bars_as_they_are() -> None:
    bars = Bars()
    assert f"{100 * bars.margin:g} points of mAP" in GUIDE
    assert f"{100 * bars.slice_drop:g} points, slices of {bars.slice_least} queries" in GUIDE
    assert f"{100 * bars.flips:g} % |" in GUIDE
