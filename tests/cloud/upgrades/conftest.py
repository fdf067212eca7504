"""Generations of a model without training: embeddings around class directions, the newer the nearer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from samespace.cloud.upgrades import Generation, Pictures

#: Classes, and pictures of each, on either side.
CLASSES, EACH = 30, 8

Make = Callable[..., Generation]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def pictures() -> Pictures:
    labels = [f"class {index % CLASSES}" for index in range(CLASSES * EACH)]
    keys = [f"photo {index}" for index in range(len(labels))]
    sources = ["phone" if index // CLASSES % 2 else "scanner" for index in range(len(labels))]
    return Pictures({"key": keys, "class": labels, "source": sources}, labels)


@pytest.fixture
def generation() -> Make:
    """A model whose embeddings lie around the classes' directions; ``noise`` is how far, ``seed`` how its errors fall."""

    def make(
        name: str, noise: float, seed: int, dim: int = 16, space: int = 0, worse: dict[int, float] | None = None
    ) -> Generation:
        directions = np.random.default_rng(space).standard_normal((CLASSES, 16))[:, :dim]
        generator = np.random.default_rng((seed, 1))
        rows = []
        for _ in ("query", "gallery"):
            labels = np.arange(CLASSES * EACH) % CLASSES
            spread = np.full(len(labels), noise)
            for label, factor in (worse or {}).items():
                spread[labels == label] *= factor
            around = directions[labels] / np.linalg.norm(directions[labels], axis=1, keepdims=True)
            rows.append(unit(around + spread[:, None] * generator.standard_normal((len(labels), dim)) / np.sqrt(dim)))
        return Generation(name, f"model-{name}", *rows)

    return make
