"""The commands of docs/upgrades.md run, in order, over runs of digits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from samespace.cloud.recipe import Recipe
from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.training import train
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": bin_folder + os.pathsep + os.environ["PATH"]}
    blocks = re.findall(r"^```bash\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    for command in [line for block in blocks for line in block.splitlines()]:
        # Models that saw a dozen steps may fail their bars, but for the command's own reasons.
        judged = "report" in command or "adapters fit" in command
        for again in ("", ' --force "shows the next step"' if "adapters fit" in command else None):
            if again is None:
                continue
            result = subprocess.run(
                command + again, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
            )
            assert result.returncode in ((0, 1, 3) if judged and not again else (0,)), f"{result.stdout}\n{result.stderr}"
            assert "error:" not in result.stderr
    for made in (
        "upgrade.html",
        "upgrade.json",
        "adapters/forward.safetensors",
        "for-old-gallery.npz",
        "runs/folded/space.json",
    ):
        assert (tmp_path / made).exists()


def test_the_guide_tells_the_bars_as_they_are() -> None:
    bars = Bars()
    assert f"{100 * bars.margin:g} points of mAP" in GUIDE
    assert f"{100 * bars.slice_drop:g} points, slices of {bars.slice_least} queries" in GUIDE
    assert f"{100 * bars.flips:g} % |" in GUIDE
