"""A run that is killed or stopped goes on and ends, byte for byte, where an uninterrupted one ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samespace.cloud.recipe import Recipe
from samespace.cloud.toml import to_toml
from samespace.cloud.training import RunDirectory, read_log, train
from samespace.cloud.training.checkpoint import unpack
from samespace.sdk.errors import ConfigError

Make = Callable[..., dict[str, Any]]

#: ``samespace train`` in a process that sends itself a signal: after the log line of one step, or before the n-th checkpoint
#: takes its name (its bytes are on disk, the rename is not done).
CHILD = """
import os, signal, sys
from samespace.cloud.training import log, run
from samespace.sdk import files

where, count, number = sys.argv[1], int(sys.argv[2]), getattr(signal, sys.argv[3])
write, replace = log.TrainingLog.write, os.replace

def written(self, record):
    global count
    write(self, record)
    if where == "step":
        count -= 1
        if count == 0:
            os.kill(os.getpid(), number)

def replaced(source, target):
    global count
    if where == "checkpoint" and str(target).endswith("checkpoint.safetensors"):
        count -= 1
        if count == 0:
            os.kill(os.getpid(), number)
    replace(source, target)

log.TrainingLog.write, os.replace = written, replaced
from samespace.sdk.cli import main
main(["train", *sys.argv[4:]])
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def interrupted(recipe: Recipe, run: Path, where: str, count: int, name: str) -> subprocess.CompletedProcess[str]:
    path = run.parent / f"{run.name}.toml"
    path.write_text(recipe.to_toml())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAMESPACE_SIZE": "full"}
    arguments = [sys.executable, "-c", CHILD, where, str(count), name, str(path), "-o", str(run)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)


def same_results(a: Path, b: Path) -> None:
    written = [{path.relative_to(run) for part in ("models", "heads") for path in (run / part).iterdir()} for run in (a, b)]
    assert written[0] == written[1]
    for file in written[0]:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file
    assert (a / "matrices.json").read_bytes() == (b / "matrices.json").read_bytes()
    timeless = [[{**record, "seconds": 0} for record in read_log(run / "log.jsonl")] for run in (a, b)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("mode", ["joint", "sequential"])
def test_killed_at_a_random_step(mode: str, recipe_content: Make, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_content(mode=mode))
    train(recipe, tmp_path / "whole")
    step = random.randrange(1, 12 if mode == "joint" else 24)
    died = interrupted(recipe, tmp_path / "killed", "step", step, "SIGKILL")
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (tmp_path / "killed" / "models").exists()
    print(f"killed after line {step} of the log")
    train(recipe, tmp_path / "killed")
    same_results(tmp_path / "whole", tmp_path / "killed")


def test_killed_while_a_checkpoint_is_written(recipe_content: Make, tmp_path: Path) -> None:
    """Twice, at the first and at a later one: what is there then is the state before, whole."""
    recipe = Recipe.model_validate(recipe_content())
    train(recipe, tmp_path / "whole")
    run = tmp_path / "killed"
    assert interrupted(recipe, run, "checkpoint", 1, "SIGKILL").returncode == -signal.SIGKILL
    assert not RunDirectory(run).checkpoint.exists()
    assert interrupted(recipe, run, "checkpoint", 2, "SIGKILL").returncode == -signal.SIGKILL
    data = RunDirectory(run).load()
    assert data is not None
    assert unpack(data, "it")[0].step == recipe.checkpoint_every
    train(recipe, run)
    same_results(tmp_path / "whole", run)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 128 + signal.SIGTERM)])
def test_stopped_politely_it_saves_the_very_step(name: str, code: int, recipe_content: Make, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_content(checkpoint_every=100))
    stopped = interrupted(recipe, tmp_path / "stopped", "step", 5, name)
    assert stopped.returncode == code, stopped.stderr
    assert stopped.stdout == ""
    assert "Traceback" not in stopped.stderr
    if name == "SIGINT":
        assert "stopped at step" in stopped.stderr
        assert "run the same command again to go on" in stopped.stderr
    data = RunDirectory(tmp_path / "stopped").load()
    assert data is not None
    assert unpack(data, "it")[0].step in (5, 6)  # the step after whose log line the signal came, or the one it arrived in
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "stopped")
    same_results(tmp_path / "whole", tmp_path / "stopped")


def test_killed_after_training_it_only_measures(recipe_content: Make, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_content())
    train(recipe, tmp_path / "whole")
    run = tmp_path / "cut"
    train(recipe, run)
    before = (run / "log.jsonl").read_bytes()
    (run / "matrices.json").unlink()
    train(recipe, run)
    assert (run / "log.jsonl").read_bytes() == before
    same_results(tmp_path / "whole", run)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:100], lambda data: data[:-1], lambda data: b"\0" * 64])
def test_damaged_checkpoint_is_refused_with_the_mend(
    damage: Callable[[bytes], bytes], recipe_content: Make, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate(recipe_content(steps=2))
    train(recipe, tmp_path / "run")
    (tmp_path / "run" / "matrices.json").unlink()
    checkpoint = RunDirectory(tmp_path / "run").checkpoint
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    with pytest.raises(ConfigError, match=r"checkpoint\.safetensors: not a checkpoint that can be read .* delete it"):
        train(recipe, tmp_path / "run")


def test_log_shorter_than_its_checkpoint_says_is_refused(recipe_content: Make, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_content(steps=2))
    train(recipe, tmp_path / "run")
    (tmp_path / "run" / "matrices.json").unlink()
    (tmp_path / "run" / "log.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"log\.jsonl is shorter than its checkpoint says"):
        train(recipe, tmp_path / "run")


def test_recipe_file_of_a_run_trains_the_same_again(recipe_content: Make, tmp_path: Path) -> None:
    from samespace.cloud.recipe import load_recipe

    (tmp_path / "recipe.toml").write_text(to_toml(recipe_content(steps=2)))
    train(load_recipe(tmp_path / "recipe.toml", "full"), tmp_path / "one")
    train(load_recipe(tmp_path / "one" / "recipe.toml", "full"), tmp_path / "two")
    same_results(tmp_path / "one", tmp_path / "two")
