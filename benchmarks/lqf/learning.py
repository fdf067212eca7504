"""Few-shot classification by every method: measured cell by cell, each kept in the folder once it is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from data import Task, far, known, near
from methods import CHOICES, learnt
from networks import NETWORKS, pretrained

from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_write

__all__ = ["ABLATION", "FAR", "MAIN", "Learning"]

#: Compared at every number of images a class; what the ablation takes away at one of them; what is measured far away.
MAIN = ("nonlinear", "probe", "exact", "kfac", "kfac-cg", "sgd", "sgd-long", "ce")
ABLATION = ("kfac", "sgd", "ce-kfac")
FAR = ("nonlinear", "probe", "exact", "kfac", "kfac-cg", "ce")
_LEAKY, _CHOOSING = 0.2, 100


class Learning:
    """Networks, tasks and cells of one size.

    Args:
        folder: of data, networks and cells.
        seeds: each trains its own networks and draws its own images.
        tell: where progress goes.
    """

    def __init__(self, folder: Path, seeds: tuple[int, ...], tell: Callable[[str], None]) -> None:
        self.seeds, self._folder, self._tell = seeds, folder, tell
        self._known, self.tasks = known(folder), {"near": near(folder), "far": far()}

    def train(self) -> None:
        """All networks."""
        for seed in self.seeds:
            for name in NETWORKS:
                for slope in (_LEAKY, 0.0):
                    pretrained(name, slope, self._known, seed, self._folder / "networks")

    def hits(self, network: str, method: str, shots: int, task: str = "near", slope: float = _LEAKY) -> npt.NDArray[np.bool_]:
        """``(seeds, test images)``: which are classified rightly."""
        settings = self._chosen(network, method, task, slope)
        return np.stack([self._cell(network, method, shots, task, slope, seed, settings) for seed in self.seeds])

    def settings(self, network: str, method: str, task: str = "near", slope: float = _LEAKY) -> dict[str, float]:
        """Chosen on validation images, with images of a seed that is not measured, at 20 a class."""
        return self._chosen(network, method, task, slope)

    def _chosen(self, network: str, method: str, task: str, slope: float) -> dict[str, float]:
        choices = CHOICES[method]
        path = self._folder / "chosen" / f"{network}-{method}-{task}-{slope}.json"
        if path.exists():
            return json.loads(path.read_text())
        shares = [self._share(network, method, task, slope, choice) for choice in choices] if len(choices) > 1 else [1.0]
        best = choices[int(np.argmax(shares))]
        self._tell(f"{path.stem}: {best} of {[round(100 * share, 1) for share in shares]}")
        atomic_write(path, json.dumps(best))
        return best

    def _share(self, network: str, method: str, task: str, slope: float, settings: dict[str, float]) -> float:
        images, labels = self.tasks[task].validation
        try:
            scores = self._scores(network, method, 20, self.tasks[task], slope, _CHOOSING, settings, images[:1000])
        except ConfigError:  # it ran away
            return 0.0
        return float((scores.argmax(1) == labels[:1000]).double().mean())

    def _cell(
        self, network: str, method: str, shots: int, task: str, slope: float, seed: int, settings: dict[str, float]
    ) -> npt.NDArray[np.bool_]:
        path = self._folder / "cells" / f"{network}-{method}-{shots}-{task}-{slope}-{seed}.npy"
        if not path.exists():
            images, labels = self.tasks[task].test
            scores = self._scores(network, method, shots, self.tasks[task], slope, seed, settings, images)
            right = (scores.argmax(1) == labels).numpy()
            self._tell(f"{path.stem}: {100 * right.mean():.1f}")
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".part.npy")
            np.save(partial, right)
            partial.rename(path)
        return np.load(path)

    def _scores(
        self,
        network: str,
        method: str,
        shots: int,
        task: Task,
        slope: float,
        seed: int,
        settings: dict[str, float],
        asked: torch.Tensor,
    ) -> torch.Tensor:
        images, labels = task.few(shots, seed)
        start = pretrained(
            network, slope, self._known, seed if seed in self.seeds else self.seeds[0], self._folder / "networks"
        )
        return learnt(method, start, images, labels, seed, asked, settings)
