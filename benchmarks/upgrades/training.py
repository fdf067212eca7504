"""Trains what is missing: one process a repetition, one thread each; what is done is not done again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data import prepare
from protocol import SIZES, Run, runs

from samespace.cloud.toml import to_toml

__all__ = ["done", "train_all"]

#: Written last by a run.
_LAST = "matrices.json"


def done(folder: Path, run: Run) -> bool:
    """Whether a run of a repetition is finished."""
    return (folder / "runs" / run.name / _LAST).exists()


def train_all(folder: Path, size: str, workers: int, say: Callable[[str], None]) -> dict[str, str]:
    """Train what is not there yet.

    Args:
        folder: of everything; repetition s is in ``seed-s``.
        workers: repetitions at once.

    Returns:
        run -> why it failed; empty when all are done.
    """
    scale = SIZES[size]
    prepare(folder / "data", scale.data)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda seed: _repetition(folder / f"seed-{seed}", runs(size, seed), say), scale.seeds)
    return {name: reason for failed in found for name, reason in failed.items()}


def _repetition(folder: Path, wanted: list[Run], say: Callable[[str], None]) -> dict[str, str]:
    for place in ("recipes", "logs", "runs"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for number, run in enumerate(wanted, 1):
        if done(folder, run):
            continue
        log = folder / "logs" / f"{run.name}.log"
        with log.open("wb") as output:
            code = subprocess.run(
                _command(folder, run), stdout=output, stderr=subprocess.STDOUT, env=_environment(), check=False
            ).returncode
        if code:
            lines = log.read_text(errors="replace").strip().splitlines()
            failed[f"{folder.name}/{run.name}"] = lines[-1] if lines else f"exit code {code}"
        say(f"{folder.name} {number}/{len(wanted)} {run.name}{' FAILED' if code else ''}")
    return failed


def _command(folder: Path, run: Run) -> list[str]:
    recipe = folder / "recipes" / f"{run.name}.toml"
    recipe.write_text(to_toml(run.recipe))
    command = [str(Path(sys.executable).parent / "samespace"), "train", str(recipe), "-o", str(folder / "runs" / run.name)]
    return command + (["--upgrade-from", str(folder / "runs" / run.upgrades)] if run.upgrades else [])


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "SAMESPACE_SIZE": "full", "COLUMNS": "100"}
