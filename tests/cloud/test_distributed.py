"""Two processes under torchrun give what one process gives with the same batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from samespace.cloud.recipe import Recipe
from samespace.cloud.training import read_log, train
from samespace.cloud.training.device import World
from samespace.sdk.errors import ConfigError

#: A family without batch norm, whose statistics are each process's own on the CPU; installed as any other package's family is.
FAMILY = """
from torch import nn

def build(*, dim, image_size, width=8):
    side = image_size // 4
    return nn.Sequential(
        nn.Conv2d(3, width, 5, 4, 2), nn.GroupNorm(2, width), nn.GELU(), nn.Flatten(), nn.Linear(width * side * side, dim)
    )
"""

#: ``samespace train`` as each process runs it; what the process holds in the end is written down beside the run.
CHILD = """
import sys
import safetensors.torch
from samespace.cloud.training.trainer import Trainer

run = Trainer.run

def kept(self):
    run(self)
    for name, tier in self.tiers.items():
        safetensors.torch.save_file(tier.state_dict(), f"{sys.argv[1]}.{name}.rank{self.world.rank}")

Trainer.run = kept
from samespace.sdk.cli import main
main(["train", sys.argv[2], "-o", sys.argv[1]])
"""


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a family in a package that was just installed."""
    site = tmp_path / "site"
    information = site / "tinyfamily-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "tinyfamily.py").write_text(FAMILY)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tinyfamily\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[samespace.models]\ntiny = tinyfamily:build\n")
    monkeypatch.syspath_prepend(site)
    return "tiny"


@pytest.fixture
def content(family: str, recipe_content: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    def model(role: str, width: int) -> dict[str, Any]:
        return {"role": role, "family": family, "dim": 8, "preprocess": {"size": 16}, "arguments": {"width": width}}

    return recipe_content(steps=10, models={"cloud": model("cloud", 16), "phone": model("edge", 8)})


def two_processes(recipe: Recipe, run: Path, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAMESPACE_SIZE": "full", "PYTHONPATH": path}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(tmp_path / "child.py"), str(run), str(tmp_path / "recipe.toml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["joint", "sequential"])
def test_two_processes_are_one(mode: str, content: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**content, "mode": mode})
    run = tmp_path / "two"
    two_processes(recipe, run, tmp_path)
    train(recipe, tmp_path / "one")

    for name in recipe.models:
        first, second = (safetensors.torch.load_file(f"{run}.{name}.rank{rank}") for rank in (0, 1))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name

    ours, theirs = (read_log(folder / "log.jsonl") for folder in (run, tmp_path / "one"))
    assert [(record["stage"], record["step"]) for record in ours] == [(record["stage"], record["step"]) for record in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name, losses in a["losses"].items():
            assert losses == pytest.approx(b["losses"][name], rel=1e-3), (a["stage"], a["step"], name)
    phone = [record["losses"]["phone"]["total"] for record in ours if "phone" in record["losses"]]
    assert np.mean(phone[-3:]) < 0.8 * np.mean(phone[:3])
    for name in recipe.models:
        a, b = (safetensors.torch.load_file(folder / "models" / f"{name}.safetensors") for folder in (run, tmp_path / "one"))
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], rtol=1e-2, atol=1e-3)


def test_batch_norm_models_end_equal_on_all_processes(recipe_content: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_content(steps=4))
    run = tmp_path / "two"
    two_processes(recipe, run, tmp_path)
    for name in recipe.models:
        first, second = (safetensors.torch.load_file(f"{run}.{name}.rank{rank}") for rank in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="make it a multiple of 3"):
        World(torch.device("cpu"), rank=1, size=3).share(16)
    assert World(torch.device("cpu"), rank=1, size=2).share(16) == slice(8, 16)
