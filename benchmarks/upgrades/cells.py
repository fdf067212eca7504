"""What the runs found: hits and average precisions of every query, and embeddings, as the runs kept them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from samespace.cloud.upgrades.measure import Generation, Pictures

__all__ = ["Cells"]


class Cells:
    """All repetitions of a size.

    Args:
        folder: of the size.
        seeds: of the repetitions.
    """

    def __init__(self, folder: Path, seeds: tuple[int, ...]) -> None:
        self.folder, self.seeds = folder, seeds

    def run(self, seed: int, name: str) -> Path:
        """The folder of a run."""
        return self.folder / f"seed-{seed}" / "runs" / name

    def found(
        self, run: str, query: str, gallery: str, *, metric: str = "recall@1", split: str = "test"
    ) -> npt.NDArray[np.float64]:
        """``(seeds, queries)``: M(query, gallery) of each query, ``recall@1`` or ``map``."""
        key = f"{split}/{query}->{gallery}" + ("/ap" if metric == "map" else "")
        return np.stack([_tensors(self.run(seed, run) / "queries.safetensors")[key] for seed in self.seeds]).astype(np.float64)

    def kept(self, seed: int, name: str, make: Callable[[], Mapping[str, npt.NDArray]]) -> dict[str, npt.NDArray]:
        """Arrays of a repetition that are made once and kept in its folder."""
        file = self.folder / f"seed-{seed}" / f"{name}.npz"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **make())  # type: ignore[arg-type]
        with np.load(file) as told:
            return dict(told)

    def pictures(self, seed: int, run: str) -> Pictures:
        """The test pictures; the same in all runs."""
        test = json.loads((self.run(seed, run) / "items.json").read_bytes())["test"]
        return Pictures(test["query"], test["gallery"]["class"])

    def generation(self, seed: int, run: str, tier: str) -> Generation:
        """What a model of a run makes of the test pictures."""
        rows = _tensors(self.run(seed, run) / "embeddings" / f"{tier}.safetensors")
        weights = json.loads((self.run(seed, run) / "models" / f"{tier}.json").read_bytes())["weights_sha256"]
        return Generation(f"{run}/{tier}", f"m-{weights[:32]}", rows["query"], rows["gallery"])


@cache
def _tensors(file: Path) -> dict[str, npt.NDArray[np.float32]]:
    return safetensors.numpy.load(file.read_bytes())
