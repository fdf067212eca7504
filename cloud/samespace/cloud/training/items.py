"""What is known of the pictures that a run is measured on, so that a report can say for which of them an upgrade is worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.cloud.training.data import TrainingData
from samespace.sdk.preprocess import Preprocess

__all__ = ["QUALITIES", "described", "sharpness"]

#: The thirds of a split's queries by :func:`sharpness`, least first.
QUALITIES = ("blurred", "middling", "sharp")


def described(data: TrainingData, preprocess: Preprocess) -> dict[str, dict[str, dict[str, list[str]]]]:
    """Split -> ``query`` and ``gallery`` -> field -> one value a picture, in the order of the split.

    The fields are key, class and source, and for queries quality: of :data:`QUALITIES`, as the cloud model gets to see them.
    """
    split = data.split
    sides = {
        "validation": {"query": split.validation_query, "gallery": split.validation_gallery},
        "test": {"query": split.test_query, "gallery": split.test_gallery},
    }
    found: dict[str, dict[str, dict[str, list[str]]]] = {
        name: {side: _fields(data, part) for side, part in both.items()} for name, both in sides.items()
    }
    for name, both in sides.items():
        if both["query"]:
            found[name]["query"]["quality"] = _thirds(sharpness(data.prepared(both["query"], preprocess)))
    return found


def sharpness(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Variance of the Laplacian of the luma, the usual measure of focus (Pech-Pacheco et al., ICPR 2000).

    Args:
        pictures: ``(n, h, w, 3)`` uint8 RGB, h and w at least 3.

    Returns:
        ``(n,)`` float64, 0 for a picture of one colour.
    """
    grey = pictures.astype(np.float64) @ (0.299, 0.587, 0.114)
    middle = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (around - 4 * middle).var(axis=(1, 2))


def _thirds(values: npt.NDArray[np.float64]) -> list[str]:
    places = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return [QUALITIES[3 * place // len(values)] for place in places]


def _fields(data: TrainingData, part: Sequence[int]) -> dict[str, Any]:
    items = [data.images.items[index] for index in part]
    return {
        "key": [item.key for item in items],
        "class": [item.label for item in items],
        "source": [item.source for item in items],
    }
