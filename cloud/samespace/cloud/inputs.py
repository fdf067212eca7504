"""From a batch of uint8 pictures at source size to what each model takes."""

from __future__ import annotations

import torch
from torch import Tensor

from samespace.cloud.data.resize import resize_batch
from samespace.sdk.preprocess import Preprocess

__all__ = ["Views", "normalised"]


def normalised(pictures: Tensor, preprocess: Preprocess) -> Tensor:
    """``(n, s, s, 3)`` uint8 -> ``(n, 3, s, s)`` float32 as networks take it, channels last in memory.

    Scaled to 0-1, minus the mean, by the standard deviation: what sits inside an exported graph.
    """
    mean = torch.tensor(preprocess.mean, device=pictures.device) * 255
    std = torch.tensor(preprocess.std, device=pictures.device) * 255
    return ((pictures.float() - mean) / std).permute(0, 3, 1, 2)


class Views:
    """One augmented batch as each model sees it; models with the same preprocessing share the tensor.

    Args:
        pictures: ``(n, h, w, 3)`` uint8, square, at source size.
    """

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures
        self._made: dict[tuple[object, ...], Tensor] = {}

    def of(self, preprocess: Preprocess) -> Tensor:
        """``(n, 3, size, size)`` float32."""
        key = (preprocess.size, preprocess.mean, preprocess.std)
        if key not in self._made:
            self._made[key] = normalised(resize_batch(self.pictures, preprocess.size), preprocess)
        return self._made[key]
