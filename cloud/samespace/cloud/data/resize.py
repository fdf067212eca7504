"""The resize of :class:`samespace.sdk.preprocess.Preprocess`, for batches in torch.

Training augments a picture once at its source size; each model then gets the same picture at its own size. Pillow's resize
is a triangle filter with antialias, horizontal pass first, rounded to 8 bits after each pass. On the CPU torch has the same
for uint8 (in 16-bit fixed point); elsewhere it is done as two matrix products. Both are within one level of Pillow.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import functional

__all__ = ["resize_batch"]


def resize_batch(batch: torch.Tensor, size: int) -> torch.Tensor:
    """Resize square pictures.

    Args:
        batch: ``(n, s, s, 3)`` uint8.
        size: the new edge in pixels.

    Returns:
        ``(n, size, size, 3)`` uint8, on the same device; at most one level off what ``Preprocess`` gives, and ``batch`` itself
        where it has that size already.
    """
    if batch.shape[1] == size and batch.shape[2] == size:
        return batch
    if batch.device.type != "cpu":
        return resize_by_matrices(batch, size)
    channels_first = batch.permute(0, 3, 1, 2)
    resized = functional.interpolate(channels_first, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.permute(0, 2, 3, 1)


def resize_by_matrices(batch: torch.Tensor, size: int) -> torch.Tensor:
    """The same on any device, at some ten times the cost on a CPU."""
    count, height, width, channels = batch.shape
    across = _weights(width, size).to(batch.device)
    down = _weights(height, size).to(batch.device)
    rows = batch.permute(0, 3, 1, 2).reshape(-1, width).float() @ across
    rows = _to_levels(rows).reshape(count * channels, height, size)
    pixels = _to_levels(down.T @ rows).to(torch.uint8)
    return pixels.reshape(count, channels, size, size).permute(0, 2, 3, 1)


def _to_levels(values: torch.Tensor) -> torch.Tensor:
    return (values + 0.5).floor_().clamp_(0, 255)


@functools.lru_cache(maxsize=32)
def _weights(inputs: int, outputs: int) -> torch.Tensor:
    """``(inputs, outputs)``: Pillow's triangle filter in 22 bits of fixed point, as float32; columns sum to one."""
    scale = inputs / outputs
    support = max(scale, 1.0)
    centres = (torch.arange(outputs, dtype=torch.float64) + 0.5) * scale
    positions = torch.arange(inputs, dtype=torch.float64) + 0.5
    weights = (1 - (positions[:, None] - centres[None, :]).abs() / support).clamp(min=0)
    weights /= weights.sum(0, keepdim=True)
    return ((weights * 2**22).round() / 2**22).float()
