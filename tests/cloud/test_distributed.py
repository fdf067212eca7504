"""Two processes under torchrun give what one process gives with the same batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from samespace.cloud.recipe import Recipe
from samespace.cloud.toml import to_toml
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

#: What each process runs: all recipes of a folder, one after the other; what it holds in the end is written beside each run.
CHILD = """
import sys
from pathlib import Path

import safetensors.torch

from samespace.cloud.recipe import load_recipe
from samespace.cloud.training import train
from samespace.cloud.training.device import open_world
from samespace.cloud.training.trainer import Trainer

run = Trainer.run

def kept(self):
    run(self)
    for name, tier in self.tiers.items():
        state = {key: value.contiguous() for key, value in tier.state_dict().items()}
        safetensors.torch.save_file(state, f"{self.directory.path}.{name}.rank{self.world.rank}")

Trainer.run = kept
with open_world("cpu") as world:
    for recipe in sorted(Path(sys.argv[1]).glob("*.toml")):
        result = train(load_recipe(recipe, "full"), recipe.with_suffix(""))
        assert (result is None) == (world.rank > 0)
"""


@pytest.fixture(scope="module")
def contents(digits: Path) -> dict[str, dict[str, Any]]:
    """Runs of a family without batch norm, joint, sequential and with shared weights, and runs with it."""

    def content(mode: str, family: str, **arguments: Any) -> dict[str, Any]:
        def model(role: str) -> dict[str, Any]:
            return {"role": role, "family": family, "dim": 8, "preprocess": {"size": 16}, "arguments": arguments}

        return {
            "name": "digits",
            "mode": mode,
            # Terms over the pairs of a batch see a process's own share, so they would differ.
            "losses": {
                "cosine_softmax": {},
                "partner_head": {},
                "regression": {},
                **({"csd": {}} if mode == "sequential" else {}),
            },
            "steps": 10,
            "batch": 16,
            "log_every": 1,
            "device": "cpu",
            "data": {"kind": "folder", "root": str(digits), "source_size": 16},
            "models": {"cloud": model("cloud"), "phone": model("edge")},
        }

    def slimmable(content: dict[str, Any]) -> dict[str, Any]:
        phone = {**content["models"]["phone"], "arguments": {"width": 4, "stages": 1}, "shares": "cloud"}
        return {**content, "models": {**content["models"], "phone": phone}}

    return {
        "joint": content("joint", "tiny", width=8),
        "sequential": content("sequential", "tiny", width=8),
        "family": {
            **content("joint", "tiny", width=8),
            "losses": {"cosine_softmax": {}, "regression": {}},
            "joint": {"weights": "uncertainty", "project_conflicts": True, "shared_head": True},
        },
        "slimmable": slimmable(content("joint", "residual", width=6, stages=1)),
        "batch_norm": content("joint", "residual", width=4, stages=1),
    }


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a package with the family is installed."""
    site = tmp_path_factory.mktemp("site")
    information = site / "tinyfamily-1.0.dist-info"
    information.mkdir()
    (site / "tinyfamily.py").write_text(FAMILY)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: tinyfamily\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[samespace.models]\ntiny = tinyfamily:build\n")
    return site


@pytest.fixture(scope="module")
def two_processes(contents: dict[str, dict[str, Any]], family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the runs, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "child.py").write_text(CHILD)
    for name, content in contents.items():
        (folder / f"{name}.toml").write_text(to_toml(content))
    path = os.pathsep.join([str(family), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAMESPACE_SIZE": "full", "PYTHONPATH": path}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(folder / "child.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["joint", "sequential", "family", "slimmable", "batch_norm"])
def test_both_processes_end_with_the_same_weights(name: str, two_processes: Path) -> None:
    for tier in ("cloud", "phone"):
        first, second = (safetensors.torch.load_file(f"{two_processes / name}.{tier}.rank{rank}") for rank in (0, 1))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["joint", "sequential", "family"])
def test_two_processes_are_one(
    name: str,
    two_processes: Path,
    contents: dict[str, dict[str, Any]],
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(family)
    train(Recipe.model_validate(contents[name]), tmp_path / "one")
    folders = (two_processes / name, tmp_path / "one")
    ours, theirs = (read_log(folder / "log.jsonl") for folder in folders)
    assert [(record["stage"], record["step"]) for record in ours] == [(record["stage"], record["step"]) for record in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for tier, losses in a["losses"].items():
            assert losses == pytest.approx(b["losses"][tier], rel=1e-3), (a["stage"], a["step"], tier)
    phone = [record["losses"]["phone"]["total"] for record in ours if "phone" in record["losses"]]
    assert np.mean(phone[-3:]) < 0.8 * np.mean(phone[:3])
    for tier in ("cloud", "phone"):
        a, b = (safetensors.torch.load_file(folder / "models" / f"{tier}.safetensors") for folder in folders)
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], rtol=1e-2, atol=1e-3)


def test_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="make it a multiple of 3"):
        World(torch.device("cpu"), rank=1, size=3).share(16)
    assert World(torch.device("cpu"), rank=1, size=2).share(16) == slice(8, 16)
