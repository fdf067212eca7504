"""What known mistakes of apps would give with a model: fingerprints that the check compares a failing device with."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import nn

from samespace.export.torch_runtime import embed
from samespace.sdk.identity import ModelRecord
from samespace.sdk.preprocess import Preprocess

__all__ = ["fingerprints", "resized_without_antialias"]

#: Below this largest difference a mistake changes nothing here (no antialias on images that are small already, say).
_SAME = 1e-4


def fingerprints(
    model: nn.Module, record: ModelRecord, images: tuple[bytes, ...], tensors: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.float32]]:
    """Embeddings of the probe images under each mistake that makes a difference to them.

    Args:
        model: the torch model, in evaluation mode.
        record: its record.
        images: encoded, n of them.
        tensors: ``(n, size, size, 3)`` uint8, the same images preprocessed rightly.

    Returns:
        name -> ``(n, dim)`` float32; all of unit norm but ``no_l2``.
    """
    plain = np.stack([resized_without_antialias(record.preprocess, image) for image in images])
    made = {
        "bgr": embed(model, record, tensors[..., ::-1]),
        "no_antialias": embed(model, record, plain),
        "float01_twice": embed(model, record, tensors.astype(np.float32) / 255),
        "no_mean_std": embed(model, record, tensors, mean_std=False),
        "no_l2": embed(model, record, tensors, l2=False),
    }
    right = embed(model, record, tensors)
    return {name: rows for name, rows in made.items() if np.abs(rows - right).max() > _SAME}


def resized_without_antialias(preprocess: Preprocess, image: bytes) -> npt.NDArray[np.uint8]:
    """Preprocess with a bilinear resize that looks at four pixels whatever the reduction, as many image libraries do.

    Returns:
        ``(size, size, 3)`` uint8.
    """
    source = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
    if source.has_transparency_data:
        over = source.convert("RGBA")
        source = Image.alpha_composite(Image.new("RGBA", over.size, (*preprocess.background, 255)), over)
    source = source.convert("RGB")
    width, height = source.size
    edge = {"stretch": 0, "crop": min(width, height), "pad": max(width, height)}[preprocess.fit]
    scale = preprocess.size / edge if edge else 0
    target = (max(1, round(width * scale)), max(1, round(height * scale))) if edge else (preprocess.size, preprocess.size)
    sampled = source.transform(target, Image.Transform.EXTENT, (0, 0, width, height), Image.Resampling.BILINEAR)
    # It has its final scale now, so what is left to Preprocess is to crop or to pad.
    return preprocess(sampled)
