"""Vectors that lie as embeddings of pictures lie, as many as wanted, and the small models that the service is asked with.

Embeddings of a million pictures are not at hand, so: the test world's cloud model (a linear one, 128 dimensions) embeds real
emoji drawings; a vector is a point between a drawing's embedding and that of one of its 16 nearest neighbours, plus Gaussian
noise of half the median distance between nearest neighbours; then the norm. Everything follows from the seed, in blocks of
10 000, so that a small set is the beginning of a large one.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[2]
DIM = 128
BLOCK = 10_000
#: Of the metadata: one item in ten, and one in a hundred, has the value 0.
SHARES = {"tenth": 10, "hundredth": 100}

Rows = npt.NDArray[np.float32]


def open_world(folder: Path) -> Any:
    """The tests' world with vectors of :data:`DIM` dimensions."""
    # Of an earlier process: what it signed, nobody trusts any more.
    shutil.rmtree(folder, ignore_errors=True)
    module = _module("gallery_test_world", ROOT / "tests" / "cloud" / "gallery" / "conftest.py")

    class World(module.GalleryWorld):
        dim = DIM

    return World(folder)


def seeds_of(world: Any, size: str) -> Rows:
    """``(m, 128)`` embeddings of pictures: of emoji drawings; at size ci of the world's own, which need no download."""
    if size == "ci":
        return world.embed("cloud", [world.picture() for _ in range(200)])
    from samespace.cloud.data import EmojiConfig
    from samespace.cloud.data.emoji import open_emoji

    images = open_emoji(EmojiConfig(size="ci"), show=False)
    pictures = []
    for number in range(len(images.items)):
        buffer = io.BytesIO()
        images.load(number).save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return world.embed("cloud", pictures)


class Dataset:
    """Blocks of vectors around ``(m, d)`` real embeddings."""

    def __init__(self, real: Rows) -> None:
        self._real = real.astype(np.float64)
        cosines = self._real @ self._real.T
        np.fill_diagonal(cosines, -np.inf)
        self._near = np.argsort(-cosines, axis=1)[:, :16]
        distances = np.sqrt(np.maximum(0, 2 - 2 * cosines.max(axis=1)))
        #: Standard deviation of each coordinate's noise.
        self.noise = float(np.median(distances) / 2 / np.sqrt(real.shape[1]))

    def block(self, number: int, size: int = BLOCK) -> Rows:
        """``(size, d)``, unit norm: always the same for a number."""
        generator = np.random.default_rng([7, number])
        first = generator.integers(0, len(self._real), size)
        second = self._near[first, generator.integers(0, self._near.shape[1], size)]
        share = generator.random((size, 1))
        rows = share * self._real[first] + (1 - share) * self._real[second]
        rows += self.noise * generator.normal(size=rows.shape)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def rows(self, n: int) -> Rows:
        """The first ``n``."""
        blocks = [self.block(number) for number in range(-(-n // BLOCK))]
        return np.concatenate(blocks)[:n]

    def queries(self, n: int) -> Rows:
        """``n`` that are in no gallery."""
        return self.block(1_000_000, n)


def item_id(number: int) -> str:
    return f"{number:08d}"


def facts(number: int) -> dict[str, int | str]:
    """The metadata of an item: small, as a path and a label are."""
    return {"path": f"pictures/{number:08d}.png"} | {name: number % count for name, count in SHARES.items()}


def nearest(rows: Rows, queries: Rows, k: int, every: int = 1) -> list[list[int]]:
    """For each query the ``k`` nearest rows among those whose number is a multiple of ``every``; by brute force."""
    best: list[list[tuple[float, int]]] = [[] for _ in queries]
    kept = np.arange(0, len(rows), every)
    for start in range(0, len(kept), 50_000):
        numbers = kept[start : start + 50_000]
        scores = queries.astype(np.float64) @ rows[numbers].astype(np.float64).T
        top = np.argpartition(-scores, min(k, scores.shape[1] - 1), axis=1)[:, :k]
        for row, places in enumerate(top):
            found = [(-scores[row, place], int(numbers[place])) for place in places]
            best[row] = sorted([*best[row], *found])[:k]
    return [[number for _, number in pairs] for pairs in best]


def _module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
