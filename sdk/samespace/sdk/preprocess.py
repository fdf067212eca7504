"""One declarative preprocessing spec, and the one implementation that training, calibration, export, check and client use.

The spec covers everything that happens to a picture *before* the graph, in this order:

1. decode: the first frame, in the size that the file says. Colour profiles are ignored;
2. upright: mirrored and turned as its EXIF orientation says;
3. colour: 8-bit RGB. Grey is repeated; 16-bit values keep their high byte; under alpha ``a`` lies the background:
   ``(value * a + background * (255 - a)) / 255``, rounded;
4. resize as ``fit`` says: a separable triangle filter, antialiased (its support grows with the reduction), on 8-bit values with
   22 bits of fixed-point coefficients, all rows first, then all columns - what Pillow before 13 calls ``BILINEAR``;
5. crop or pad.

What comes after (scaling to 0-1, mean, std, layout) sits inside the exported graph, so that an app has less to get wrong.
``tests/sdk/test_preprocess.py`` holds a slow second implementation of steps 2 to 5 that agrees bit for bit. (Step 1 is exact
for lossless files; JPEG decoders differ by a grey level or so among each other.)
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from samespace.sdk.errors import ImageError

__all__ = ["ImageSource", "Preprocess"]

#: Anything that can be embedded: a path, encoded bytes, a PIL image, or an ``(h, w, 3)`` / ``(h, w)`` uint8 array in RGB order.
ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]

#: Formats that are decoded. Pillow knows more, some of which run other programs (EPS) or are rarely tested.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "MPO")
#: Pixels of the largest picture that resizing may make on its way.
_MAX_RESIZED = 64_000_000
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_Byte = Annotated[int, Field(ge=0, le=255)]
_Positive = Annotated[float, Field(gt=0)]


class Preprocess(BaseModel):
    """How a picture becomes the ``(size, size, 3)`` uint8 RGB tensor that an artifact takes.

    ``mean`` and ``std`` are in units of the 0-1 range, RGB order; they describe what the graph does, not what this class does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    size: int = Field(ge=8, le=1024, description="edge of the square input in pixels")
    fit: Literal["stretch", "crop", "pad"] = Field(
        default="pad",
        description="stretch: ignore the aspect; crop: resize the shorter edge, cut the centre; pad: resize the longer edge",
    )
    background: tuple[_Byte, _Byte, _Byte] = Field(default=(255, 255, 255), description="RGB under alpha and around padding")
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[_Positive, _Positive, _Positive] = (0.5, 0.5, 0.5)
    max_pixels: int = Field(
        default=50_000_000,
        ge=1,
        le=178_000_000,
        description="larger pictures are refused before they are decoded (Pillow itself refuses beyond the upper limit)",
    )

    def __call__(self, source: ImageSource) -> npt.NDArray[np.uint8]:
        """Decode and resize one picture to ``(size, size, 3)`` uint8 RGB.

        Raises:
            ImageError: the picture cannot be decoded, or has more than ``max_pixels`` pixels.
        """
        name = str(source) if isinstance(source, str | Path) else f"<{type(source).__name__}>"
        try:
            with self._open(source, name) as image:
                self._refuse_large(name, image.width, image.height)
                image.load()
                image = self._to_rgb(_upright(image), name)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(f"{name}: not an image that can be decoded; remove it or save it again as JPEG or PNG") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(f"{name}: {error}; scale it down first") from None
        except Exception as error:  # on broken files Pillow's decoders raise whatever went wrong inside them
            reason = str(error) or type(error).__name__
            raise ImageError(f"{name}: broken image ({reason}); remove it or save it again as JPEG or PNG") from None
        return np.array(self._resize(image, name), np.uint8)

    def batch(self, sources: Iterable[ImageSource]) -> npt.NDArray[np.uint8]:
        """Like calling it on each source; returns ``(n, size, size, 3)`` uint8."""
        images = [self(source) for source in sources]
        return np.stack(images) if images else np.empty((0, self.size, self.size, 3), np.uint8)

    def _open(self, source: ImageSource, name: str) -> AbstractContextManager[Image.Image]:
        if isinstance(source, Image.Image):
            return nullcontext(source)  # the caller's, who closes it
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3):
                raise ImageError(f"an array must be uint8, (h, w, 3) in RGB order or (h, w); got {source.dtype} {source.shape}")
            if 0 in source.shape:
                raise ImageError(f"an array of shape {source.shape} holds no pixel")
            self._refuse_large(name, source.shape[1], source.shape[0])
            return nullcontext(Image.fromarray(np.ascontiguousarray(source)))
        if isinstance(source, bytes):
            return Image.open(io.BytesIO(source), formats=_formats())
        if not isinstance(source, str | Path):
            raise ImageError(f"{name}: give a path, encoded bytes, a PIL image or a uint8 array")
        if not os.path.isfile(source):
            what = "neither a file nor a link to one" if os.path.lexists(source) else "no such file"
            raise ImageError(f"{name}: {what}")
        return Image.open(source, formats=_formats())

    def _refuse_large(self, name: str, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise ImageError(f"{name}: {width}x{height} is more than {self.max_pixels} pixels; scale it down first")

    def _to_rgb(self, image: Image.Image, name: str) -> Image.Image:
        if image.mode.startswith("I"):  # I;16 and its byte orders; 16-bit PPM files come as I
            values = np.asarray(image).astype(np.int64).clip(0, 65535)
            rgb = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
            if isinstance(transparent := image.info.get("transparency"), int):
                rgb[values == transparent] = self.background
            return Image.fromarray(rgb)
        if image.mode == "F":
            raise ImageError(f"{name}: floating-point pixels have no agreed range; save it with 8 bits per channel")
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, (*self.background, 255)), rgba).convert("RGB")
        return image.convert("RGB")

    def _resize(self, image: Image.Image, name: str) -> Image.Image:
        size, (width, height) = self.size, image.size
        edge = {"stretch": 0, "crop": min(width, height), "pad": max(width, height)}[self.fit]
        # Integer arithmetic, rounded half up: the same in every language.
        scaled = (_scaled(width, size, edge), _scaled(height, size, edge)) if edge else (size, size)
        # A picture one pixel high is small until its short edge is enlarged. The first pass keeps the height.
        if scaled[0] * max(scaled[1], height) > _MAX_RESIZED:
            raise ImageError(f"{name}: {width}x{height} is too thin to be resized with fit={self.fit!r}; crop it first")
        # One axis at a time: Pillow from 13 on begins with the axis that is cheaper, and each pass rounds.
        image = image.resize((scaled[0], height), Image.Resampling.BILINEAR).resize(scaled, Image.Resampling.BILINEAR)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        if self.fit == "crop":
            return image.crop((left, top, left + size, top + size))
        if scaled == (size, size):
            return image
        canvas = Image.new("RGB", (size, size), self.background)
        canvas.paste(image, ((size - scaled[0]) // 2, (size - scaled[1]) // 2))
        return canvas


def _scaled(length: int, size: int, edge: int) -> int:
    return max(1, (length * size * 2 + edge) // (2 * edge))


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _formats() -> tuple[str, ...]:
    Image.init()  # idempotent; HEIF is there when its plug-in was registered
    return tuple(name for name in _FORMATS if name in Image.OPEN)
