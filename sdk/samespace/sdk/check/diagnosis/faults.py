"""The preprocessing mistakes that apps make, made on purpose: what each gives instead of the right tensor. Pillow and NumPy.

A mistake is one deviation from :class:`~samespace.sdk.preprocess.Preprocess` at one stage; a :class:`Recipe` has at most one
at each. The export embeds their tensors (fingerprints), the diagnosis compares an app's tensors with them. Some causes have
variants, since libraries differ in how they do the same thing: ``filter_nearest@floor`` takes the pixel at the upper left
(OpenCV, torch), ``filter_nearest@centre`` the one in the middle (Pillow).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from samespace.sdk.preprocess import Preprocess

__all__ = ["PIXEL_FAULTS", "VALUE_FAULTS", "Recipe", "faulty_tensors", "faulty_values", "stage_of"]

_Pixels = npt.NDArray[np.uint8]
_Values = npt.NDArray[np.float32]

#: Stage -> its mistakes, the most usual variant first. All are made in pixels, before the graph.
PIXEL_FAULTS: Mapping[str, tuple[str, ...]] = {
    "decode": ("exif_ignored",),
    "fit": ("squashed", "other_fit", "crop_order"),
    "resize": (
        "no_antialias",
        "filter_bicubic@plain",
        "filter_lanczos@plain",
        "filter_nearest@floor",
        "filter_box",
        "filter_bicubic@antialias",
        "filter_lanczos@antialias",
        "filter_nearest@centre",
    ),
    "colour": ("bgr",),
    "layout": ("layout@planar", "layout@interleaved"),
}
#: Mistakes in what the values mean. They leave the range of bytes, so they are made on float values.
VALUE_FAULTS: tuple[str, ...] = ("no_mean_std", "mean_std_twice", "mean_std_twice@clipped", "range_01", "range_01@bytes")

#: Of the resize filters: kernel and how many source pixels it reaches where it does not shrink.
_PLAIN = {"no_antialias": ("linear", 1), "filter_bicubic@plain": ("cubic", 2), "filter_lanczos@plain": ("lanczos", 4)}
_SMOOTH = {
    "filter_bicubic@antialias": Image.Resampling.BICUBIC,
    "filter_lanczos@antialias": Image.Resampling.LANCZOS,
    "filter_box": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Recipe:
    """Which mistake is made at which stage; empty means that the stage is right."""

    decode: str = ""
    fit: str = ""
    resize: str = ""
    colour: str = ""
    layout: str = ""
    values: str = ""

    @classmethod
    def of(cls, *faults: str) -> Recipe:
        """The recipe with these mistakes, one of a stage."""
        return cls(**{stage_of(fault): fault for fault in faults})


def stage_of(fault: str) -> str:
    """The stage at which a mistake of :data:`PIXEL_FAULTS` or :data:`VALUE_FAULTS` happens.

    Raises:
        KeyError: no such mistake.
    """
    if fault in VALUE_FAULTS:
        return "values"
    return {name: stage for stage, names in PIXEL_FAULTS.items() for name in names}[fault]


def faulty_tensors(preprocess: Preprocess, image: bytes, recipes: Sequence[Recipe]) -> list[_Pixels]:
    """Preprocess one encoded image with the pixel mistakes of each recipe; it is decoded and resized once where that will do.

    Returns:
        ``(size, size, 3)`` uint8 for each recipe.
    """
    decoded: dict[bool, _Pixels] = {}
    fitted: dict[tuple[str, str, str], _Pixels] = {}
    tensors = []
    for recipe in recipes:
        upright = not recipe.decode
        if upright not in decoded:
            decoded[upright] = np.asarray(_decoded(preprocess, image, upright=upright))
        key = (recipe.decode, recipe.fit, recipe.resize)
        if key not in fitted:
            fitted[key] = _fitted(preprocess, decoded[upright], recipe.fit, recipe.resize)
        tensor = fitted[key][..., ::-1] if recipe.colour else fitted[key]
        tensors.append(np.ascontiguousarray(_reinterpreted(tensor, recipe.layout) if recipe.layout else tensor))
    return tensors


def faulty_values(preprocess: Preprocess, tensors: npt.NDArray[np.generic], fault: str) -> _Values:
    """The values 0-255 that the right graph would have to get for its normalised input to be the mistaken one.

    Args:
        preprocess: gives mean and std.
        tensors: ``(..., 3)`` RGB 0-255.
        fault: of :data:`VALUE_FAULTS`, or empty.

    Returns:
        float32 of the same shape, in general not 0-255. For ``no_mean_std``, say, the graph makes ``x / 255`` of it.
    """
    values = np.asarray(tensors, np.float64)
    mean, std = np.asarray(preprocess.mean), np.asarray(preprocess.std)
    unit = values / 255
    if fault == "no_mean_std":
        values = 255 * (mean + std * unit)
    elif fault in ("mean_std_twice", "mean_std_twice@clipped"):
        values = 255 * (unit - mean) / std
        if fault.endswith("@clipped"):
            # An int8 graph saturates at the ends of the range that it was calibrated for.
            values = values.clip(0, 255)
    elif fault == "range_01":
        values = unit
    elif fault == "range_01@bytes":
        # Cast to bytes for an input that takes them: nearly everything is 0.
        values = np.floor(unit)
    return values.astype(np.float32)


def _decoded(preprocess: Preprocess, image: bytes, *, upright: bool) -> Image.Image:
    source = Image.open(io.BytesIO(image))
    if upright:
        source = ImageOps.exif_transpose(source)
    if source.has_transparency_data:
        over = source.convert("RGBA")
        source = Image.alpha_composite(Image.new("RGBA", over.size, (*preprocess.background, 255)), over)
    return source.convert("RGB")


def _fitted(preprocess: Preprocess, pixels: _Pixels, fault: str, resize: str) -> _Pixels:
    """Resize, and crop or pad, as ``preprocess.fit`` says or as the fault has it."""
    size, (height, width) = preprocess.size, pixels.shape[:2]
    fit = {
        "squashed": "stretch",
        "other_fit": "crop" if preprocess.fit == "pad" else "pad",
    }.get(fault, preprocess.fit)
    if fault == "crop_order" and fit != "stretch":
        pixels, fit = _squared(pixels, fit, preprocess.background), "stretch"
    edge = {"stretch": 0, "crop": min(width, height), "pad": max(width, height)}[fit]
    if not edge:
        return _resized(pixels, size, size, resize)
    target = [max(1, (length * size * 2 + edge) // (2 * edge)) for length in (height, width)]
    return _squared(_resized(pixels, target[0], target[1], resize), fit, preprocess.background)


def _squared(pixels: _Pixels, fit: str, background: tuple[int, int, int]) -> _Pixels:
    """Cut the centre square, or pad to a square."""
    height, width = pixels.shape[:2]
    if fit == "crop":
        edge = min(height, width)
        top, left = (height - edge) // 2, (width - edge) // 2
        return pixels[top : top + edge, left : left + edge]
    edge = max(height, width)
    canvas = np.empty((edge, edge, 3), np.uint8)
    canvas[:] = background
    top, left = (edge - height) // 2, (edge - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def _resized(pixels: _Pixels, height: int, width: int, fault: str) -> _Pixels:
    if fault in ("filter_nearest@floor", "filter_nearest@centre"):
        offset = 0.5 if fault.endswith("@centre") else 0.0
        rows, columns = (
            np.minimum((np.arange(new) + offset) * (old / new), old - 1).astype(np.intp)
            for new, old in ((height, pixels.shape[0]), (width, pixels.shape[1]))
        )
        return pixels[rows][:, columns]
    if fault in _PLAIN:
        kind, reach = _PLAIN[fault]
        down, across = (
            _plain_weights(new, old, kind, reach) for new, old in ((height, pixels.shape[0]), (width, pixels.shape[1]))
        )
        rows = np.zeros((height, *pixels.shape[1:]), np.float32)
        for index, weights in down:
            rows += weights[:, None, None] * pixels[index]
        values = np.zeros((height, width, 3), np.float32)
        for index, weights in across:
            values += weights[None, :, None] * rows[:, index]
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    image, method = Image.fromarray(pixels), _SMOOTH.get(fault, Image.Resampling.BILINEAR)
    return np.asarray(image.resize((width, pixels.shape[0]), method).resize((width, height), method))


def _plain_weights(new: int, old: int, kind: str, reach: int) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]]:
    """(source index, weight) of each output pixel, for each tap of a filter that does not widen when it shrinks."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(centre).astype(np.intp)
    taps = [first + step for step in range(1 - reach, reach + 1)]
    weights = np.stack([_kernel(kind, tap - centre) for tap in taps])
    weights /= weights.sum(axis=0)
    return [(tap.clip(0, old - 1), weight.astype(np.float32)) for tap, weight in zip(taps, weights, strict=True)]


def _kernel(kind: str, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = np.abs(x)
    if kind == "linear":
        return np.maximum(0, 1 - x)
    if kind == "cubic":  # Keys, a = -0.75, as OpenCV and torch have it
        a = -0.75
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))
    return np.where(x < 4, np.sinc(x) * np.sinc(x / 4), 0)


def _reinterpreted(tensor: _Pixels, fault: str) -> _Pixels:
    """The same bytes read in the other layout."""
    height, width, channels = tensor.shape
    if fault == "layout@planar":  # planes were written where pixels are expected
        return tensor.transpose(2, 0, 1).reshape(height, width, channels)
    return tensor.reshape(channels, height, width).transpose(1, 2, 0)
