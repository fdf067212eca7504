"""Which held-out pictures a model's own class weights put right: errors and negative flips of an update."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from data import in_development
from PIL import Image

from samespace.cloud.data.cache import cached_tensors
from samespace.cloud.data.images import ArrayImages, Item
from samespace.cloud.evaluation import embed
from samespace.cloud.training.partners import read_head
from samespace.export.run import read_run

__all__ = ["Classified"]

Correct = npt.NDArray[np.bool_]
#: A run and one of its models.
Member = tuple[str, str]


class Classified:
    """Predictions of all models of all repetitions; made once, kept in the folder.

    Args:
        folder: of a size.
        seeds: of the repetitions.
    """

    def __init__(self, folder: Path, seeds: tuple[int, ...]) -> None:
        self._folder, self._seeds = folder, seeds
        with (folder / "data" / "held-out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._paths = [row["path"] for row in rows]
        self._labels = np.array([row["label"] for row in rows])
        #: ``(n,)``: whether a picture is for choosing settings; the others are for figures.
        self.development = np.array([in_development(path) for path in self._paths])

    def correct(self, *members: Member, known: Member | None = None) -> Correct:
        """``(seeds, n)``: whether the members' mean logit is highest for the picture's class.

        Args:
            known: only pictures of classes that this model's run learnt; else all. They are the same for every seed.
        """
        every = np.stack([self._right(seed, members) for seed in self._seeds])
        return every if known is None else every[:, self.among(known)]

    def among(self, known: Member) -> Correct:
        """``(n,)``: whether the run of a model learnt the picture's class."""
        _, classes = read_head(self._run(self._seeds[0], known[0]), known[1])
        return np.isin(self._labels, classes)

    def _right(self, seed: int, members: Sequence[Member]) -> Correct:
        total, names = 0.0, ()
        for run, tier in members:
            head, names = read_head(self._run(seed, run), tier)
            total = total + self._rows(seed, run, tier) @ head.numpy().T
        return np.array(names)[np.argmax(total, 1)] == self._labels

    def _rows(self, seed: int, run: str, tier: str) -> npt.NDArray[np.float32]:
        kept = self._folder / f"seed-{seed}" / "held-out" / f"{run}.{tier}.npy"
        if not kept.exists():
            model = read_run(self._run(seed, run)).models[tier]
            preprocess = model.record.preprocess
            pictures = cached_tensors(self._images, range(len(self._paths)), preprocess, show_progress=False)
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, embed(model.build(), pictures, preprocess))
        return np.load(kept)

    @cached_property
    def _images(self) -> ArrayImages:
        items = [Item(path, str(label)) for path, label in zip(self._paths, self._labels, strict=True)]
        pixels = [np.asarray(Image.open(self._folder / "data" / path).convert("RGB")) for path in self._paths]
        return ArrayImages("held-out", items, np.stack(pixels))

    def _run(self, seed: int, name: str) -> Path:
        return self._folder / f"seed-{seed}" / "runs" / name
