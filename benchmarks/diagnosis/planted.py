"""Planting mistakes with other code than the diagnosis has: OpenCV decodes, OpenCV and torch resize, NumPy does the rest.

Nothing here imports ``samespace``, so that a mistake in our own simulation cannot hide in the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn import functional

__all__ = ["PLANTS", "STRANGE", "Plant", "app_input", "plants_of", "strange_input"]


@dataclass(frozen=True)
class Plant:
    """One way to make one mistake.

    Attributes:
        cause: the diagnosis that is right.
        stage: where it happens; plants of one stage exclude each other.
        name: of the implementation.
    """

    cause: str
    stage: str
    name: str


PLANTS: tuple[Plant, ...] = (
    Plant("exif_ignored", "decode", "cv2"),
    Plant("squashed", "fit", "torch"),
    Plant("other_fit", "fit", "torch"),
    Plant("crop_order", "fit", "torch"),
    Plant("no_antialias", "resize", "cv2-linear"),
    Plant("no_antialias", "resize", "torch-bilinear"),
    Plant("filter_nearest", "resize", "cv2-nearest"),
    Plant("filter_nearest", "resize", "torch-nearest-exact"),
    Plant("filter_bicubic", "resize", "cv2-cubic"),
    Plant("filter_bicubic", "resize", "torch-bicubic-antialias"),
    Plant("filter_lanczos", "resize", "cv2-lanczos4"),
    Plant("bgr", "colour", "cv2"),
    Plant("layout", "layout", "numpy-planar"),
    Plant("layout", "layout", "numpy-interleaved"),
    Plant("no_mean_std", "values", "numpy-missing"),
    Plant("mean_std_twice", "values", "numpy-twice"),
    Plant("range_01", "values", "numpy-unit"),
    Plant("no_l2", "norm", "numpy"),
)

_CV2 = {
    "cv2-linear": cv2.INTER_LINEAR,
    "cv2-nearest": cv2.INTER_NEAREST,
    "cv2-cubic": cv2.INTER_CUBIC,
    "cv2-lanczos4": cv2.INTER_LANCZOS4,
}
_TORCH: Mapping[str, tuple[str, bool]] = {
    "": ("bilinear", True),
    "torch-bilinear": ("bilinear", False),
    "torch-nearest-exact": ("nearest-exact", False),
    "torch-bicubic-antialias": ("bicubic", True),
}


def plants_of(cause: str) -> tuple[Plant, ...]:
    """Every way in which a cause is planted."""
    return tuple(plant for plant in PLANTS if plant.cause == cause)


def app_input(
    images: Sequence[bytes],
    plants: Iterable[Plant],
    *,
    size: int,
    fit: str,
    background: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> np.ndarray:
    """What an app with these mistakes feeds to a graph that takes RGB 0-255, ``(n, size, size, 3)`` float32.

    Mistakes in mean and std, which are in the graph, are fed as the values that the same graph makes the mistaken ones of.
    """
    made = {plant.stage: plant for plant in plants}
    tensors = []
    for image in images:
        pixels = _decoded(image, upright="decode" not in made)
        tensor = _fitted(pixels, size, fit, background, made)
        if "colour" in made:
            tensor = cv2.cvtColor(np.ascontiguousarray(tensor), cv2.COLOR_RGB2BGR)
        if "layout" in made:
            tensor = _other_layout(tensor, made["layout"].name)
        tensors.append(tensor)
    values = np.stack(tensors).astype(np.float64)
    if "values" in made:
        values = _values(values, made["values"].name, np.asarray(mean), np.asarray(std))
    return values.astype(np.float32)


def _decoded(image: bytes, *, upright: bool) -> np.ndarray:
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    if decoded is None:
        raise ValueError("OpenCV cannot decode a probe image")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _fitted(pixels: np.ndarray, size: int, fit: str, background: tuple[int, int, int], made: Mapping[str, Plant]) -> np.ndarray:
    fault = made["fit"].cause if "fit" in made else ""
    resize = _resizer(made["resize"].name if "resize" in made else "")
    if fault == "squashed":
        fit = "stretch"
    elif fault == "other_fit":
        fit = "crop" if fit == "pad" else "pad"
    if fit == "stretch":
        return resize(pixels, size, size)
    square = _cropped if fit == "crop" else lambda picture: _padded(picture, background)
    if fault == "crop_order":
        return resize(square(pixels), size, size)
    height, width = pixels.shape[:2]
    scale = size / (min(height, width) if fit == "crop" else max(height, width))
    return square(resize(pixels, max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))))


def _resizer(name: str) -> Callable[[np.ndarray, int, int], np.ndarray]:
    if name in _CV2:
        return lambda pixels, height, width: cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=_CV2[name])
    mode, antialias = _TORCH[name]

    def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
        smooth = {} if mode == "nearest-exact" else {"align_corners": False, "antialias": antialias}
        made = functional.interpolate(planes, size=(height, width), mode=mode, **smooth)
        return made.round().clamp(0, 255)[0].permute(1, 2, 0).byte().numpy()

    return resize


def _cropped(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return pixels[top : top + edge, left : left + edge]


def _padded(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    height, width = pixels.shape[:2]
    edge = max(height, width)
    top, left = (edge - height) // 2, (edge - width) // 2
    sides = (top, edge - height - top, left, edge - width - left)
    return cv2.copyMakeBorder(np.ascontiguousarray(pixels), *sides, cv2.BORDER_CONSTANT, value=background)


def _other_layout(tensor: np.ndarray, name: str) -> np.ndarray:
    flat = np.ascontiguousarray(np.moveaxis(tensor, 2, 0) if name == "numpy-planar" else tensor).ravel()
    height, width, channels = tensor.shape
    if name == "numpy-planar":
        return flat.reshape(height, width, channels)
    return np.moveaxis(flat.reshape(channels, height, width), 0, 2)


def _values(values: np.ndarray, name: str, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    if name == "numpy-unit":
        return values / 255
    normalised = (values / 255 - mean) / std
    wrong = values / 255 if name == "numpy-missing" else (normalised - mean) / std
    # The graph scales and normalises by itself: what it has to be given to arrive at the wrong values.
    return (wrong * std + mean) * 255


def _jpeg(tensor: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", tensor, [cv2.IMWRITE_JPEG_QUALITY, 8])[1], cv2.IMREAD_COLOR)


#: Mistakes that the diagnosis has no fingerprint of: right tensor in, wrong one out.
STRANGE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "gamma": lambda tensor: (255 * (tensor / 255.0) ** 1.8).round().astype(np.uint8),
    "blur": lambda tensor: cv2.GaussianBlur(tensor, (0, 0), tensor.shape[0] / 24),
    "rotated": lambda tensor: np.ascontiguousarray(np.rot90(tensor)),
    "jpeg": _jpeg,
    "grey": lambda tensor: cv2.cvtColor(cv2.cvtColor(tensor, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
    "shift": lambda tensor: np.roll(tensor, tensor.shape[0] // 8, axis=1),
    "noise": lambda tensor: (
        (tensor + np.random.default_rng(int(tensor.sum())).normal(0, 25, tensor.shape)).clip(0, 255).astype(np.uint8)
    ),
    "dark": lambda tensor: (tensor * 0.6).astype(np.uint8),
}


def strange_input(golden: np.ndarray, name: str) -> np.ndarray:
    """Right tensors ``(n, size, size, 3)`` uint8 with a mistake of :data:`STRANGE`, float32."""
    return np.stack([STRANGE[name](np.ascontiguousarray(tensor)) for tensor in golden]).astype(np.float32)
