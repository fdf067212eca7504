"""Images a second of the product's trainer and of a plain PyTorch loop with the same models and forward passes.

python throughput.py FOLDER SIZE    writes FOLDER/runs/throughput/done.json

Both train a cloud model and two edge models in one process on one thread, in turns. The trainer's time is that of its own log:
batches, augmentation, losses, logging and all else between two lines of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from plain import SCALE, batches, channels_last
from protocol import ARCHITECTURES, DIM, LOSSES, PIXELS
from torch import nn

from samespace.cloud.recipe import Recipe
from samespace.cloud.training import read_log, train
from samespace.cloud.training.data import TrainingData, load_training_data
from samespace.edge.models.registry import build_model
from samespace.sdk.files import atomic_write

__all__ = ["ratio_of"]

EDGES = ("residual", "inverted3")
BATCH = 96


def main(folder: Path, size: str) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    rounds, steps, width = {"full": (8, 30, 64), "small": (5, 30, 32), "ci": (2, 4, 8)}[size]
    recipe = _recipe(size, steps, width)
    data = load_training_data(recipe)
    ours, plain = [], []
    for number in range(-1, rounds):  # the first round warms up
        # Who goes first alternates, so that neither always has the warmer machine.
        for one in (_ours, _plain) if number % 2 else (_plain, _ours):
            (ours if one is _ours else plain).append(one(recipe, data))
    value, low, high = ratio_of(np.array(ours[1:]), np.array(plain[1:]))
    result = {"ratio": value, "low": low, "high": high, "rounds": rounds, "steps": steps}
    result |= {"ours_images_s": float(np.median(ours[1:])), "plain_images_s": float(np.median(plain[1:]))}
    atomic_write(folder / "runs" / "throughput" / "done.json", json.dumps(result))
    print(result)


def ratio_of(ours: np.ndarray, plain: np.ndarray, count: int = 2000) -> tuple[float, float, float]:
    """Ratio of the medians with its 95 % interval, a bootstrap over the rounds; element i of both is round i."""
    rows = np.random.default_rng(0).integers(0, len(ours), (count, len(ours)))
    low, high = np.quantile(np.median(ours[rows], axis=1) / np.median(plain[rows], axis=1), [0.025, 0.975])
    return float(np.median(ours) / np.median(plain)), float(low), float(high)


def _recipe(size: str, steps: int, width: int) -> Recipe:
    def model(role: str, family: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"role": role, "family": family, "dim": DIM, "preprocess": {"size": PIXELS}, "arguments": arguments}

    edges = {name: model("edge", *ARCHITECTURES[name][:2]) for name in EDGES}
    cloud = model("cloud", "wide_residual", {"width": width, "stages": 2})
    return Recipe.model_validate(
        {
            "name": "throughput",
            "mode": "joint",
            "steps": steps + 1,
            "batch": BATCH if size != "ci" else 16,
            "device": "cpu",
            "log_every": 1 if size == "ci" else 10,
            "data": {"kind": "emoji", "size": "ci"},
            "losses": LOSSES["head-regression"],
            "models": {"cloud": cloud, **edges},
        }
    )


def _ours(recipe: Recipe, data: TrainingData) -> float:
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "run")
        lines = read_log(Path(folder) / "run" / "log.jsonl")
    # The first line ends the warm-up, and the last one follows the last step, before the final checkpoint.
    first, last = lines[0], lines[-1]
    return (last["step"] - first["step"]) * recipe.batch / (last["seconds"] - first["seconds"])


def _plain(recipe: Recipe, data: TrainingData) -> float:
    networks = {name: build_model(spec.family, spec.builder_arguments) for name, spec in recipe.models.items()}
    heads, optimisers, schedules = {}, {}, {}
    for name, network in networks.items():
        networks[name] = channels_last(network.train())
        heads[name] = nn.Parameter(torch.randn(len(data.classes), DIM) / DIM**0.5)
        optimisers[name] = torch.optim.AdamW([*network.parameters(), heads[name]], lr=3e-3, weight_decay=0.02)
        schedules[name] = torch.optim.lr_scheduler.OneCycleLR(optimisers[name], 3e-3, recipe.steps + 1, pct_start=0.2)
    pictures, labels = torch.from_numpy(data.pictures), torch.from_numpy(data.labels)
    skipped = recipe.log_every
    began = 0.0
    for step, (views, answers) in enumerate(batches(pictures, labels, PIXELS, recipe.batch, recipe.steps, recipe.seed)):
        if step == skipped:
            began = time.perf_counter()
        target = head = None
        for name, network in networks.items():
            embedding = F.normalize(network(views), dim=1)
            loss = F.cross_entropy(SCALE * embedding @ F.normalize(heads[name], dim=1).T, answers)
            if target is None or head is None:
                target, head = embedding.detach(), F.normalize(heads[name], dim=1).detach()
            else:
                loss = loss + F.cross_entropy(SCALE * embedding @ head.T, answers)
                loss = loss + 5 * (1 - (embedding * target).sum(1)).mean()
            optimisers[name].zero_grad(set_to_none=True)
            loss.backward()
            optimisers[name].step()
            schedules[name].step()
    return (recipe.steps - skipped) * recipe.batch / (time.perf_counter() - began)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
