"""Turning preprocessed images into what an artifact takes, as its :class:`~samespace.sdk.manifest.TensorSpec` says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.manifest import TensorSpec

__all__ = ["as_input"]


def as_input(images: npt.NDArray[np.uint8], spec: TensorSpec) -> npt.NDArray[Any]:
    """Give ``(n, h, w, 3)`` uint8 images the dtype and the layout of ``spec``; values stay 0-255.

    An ``image`` input (Core ML) becomes ``(n, 3, h, w)`` float32, which is what Core ML hands to the program.
    """
    array: npt.NDArray[Any] = images if spec.dtype == "uint8" else images.astype(np.float32)
    if spec.layout == "nchw" or spec.dtype == "image":
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array)
