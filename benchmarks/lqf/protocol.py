"""How much is measured at each size, and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SIZES", "Found", "Hits", "Scale"]

Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scale:
    """Seeds, images a class near and far, images a class of the ablation, how many networks, steps and pictures of the runs."""

    seeds: tuple[int, ...]
    shots: tuple[int, ...]
    far: tuple[int, ...]
    ablated: int
    networks: int
    steps: int
    data: str


SIZES = {
    "full": Scale((0, 1, 2), (5, 10, 20, 50), (5, 10, 20), 20, 2, 500, "full"),
    "ci": Scale((0,), (5, 10), (5,), 5, 1, 30, "ci"),
}


@dataclass(frozen=True, eq=False)
class Found:
    """Hits ``(seeds, test images)`` by network, method and images a class (of the ablation: by the slope below 0)."""

    shots: tuple[int, ...]
    far_shots: tuple[int, ...]
    ablated: int
    networks: tuple[str, ...]
    near: Mapping[tuple[str, str, int], Hits]
    ablation: Mapping[tuple[str, str, float], Hits]
    far: Mapping[tuple[str, str, int], Hits]
    constrained: Mapping[str, Any]
    forwards: Mapping[str, float]
