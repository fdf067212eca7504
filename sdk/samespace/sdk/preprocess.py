"""One declarative preprocessing spec, and the one implementation that training, calibration, export, check and client use.

The spec covers everything that happens to a picture *before* the graph: decode, EXIF transpose, colour, resize, crop. What
comes after (scaling to 0-1, mean, std, layout) sits inside the exported graph, so that an app has less to get wrong.

The resize is exact: a separable triangle filter, antialiased (its support grows with the reduction), on 8-bit values with
22 bits of fixed-point coefficients, horizontal pass first - what Pillow calls ``BILINEAR``. ``tests/sdk/test_preprocess.py``
holds a slow second implementation that must agree bit for bit.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from samespace.sdk.errors import ImageError

__all__ = ["ImageSource", "Preprocess"]

#: Anything that can be embedded: a path, encoded bytes, a PIL image, or an ``(h, w, 3)`` / ``(h, w)`` uint8 array in RGB order.
ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]


class Preprocess(BaseModel):
    """How a picture becomes the ``(size, size, 3)`` uint8 RGB tensor that an artifact takes.

    ``mean`` and ``std`` are in units of the 0-1 range, RGB order; they describe what the graph does, not what this class does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    size: int = Field(ge=8, le=1024, description="edge of the square input in pixels")
    fit: Literal["stretch", "crop", "pad"] = Field(
        default="pad",
        description="stretch: ignore the aspect; crop: resize the shorter edge, centre crop; pad: resize the longer, centre",
    )
    background: tuple[int, int, int] = Field(default=(255, 255, 255), description="RGB under alpha and around padding")
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    max_pixels: int = Field(default=50_000_000, description="larger pictures are refused before they are decoded")

    def __call__(self, source: ImageSource) -> npt.NDArray[np.uint8]:
        """Decode and resize one picture to ``(size, size, 3)`` uint8 RGB.

        Raises:
            ImageError: the picture cannot be decoded, or has more than ``max_pixels`` pixels.
        """
        image = self._to_rgb(self._open(source))
        return np.asarray(self._resize(image), dtype=np.uint8)

    def batch(self, sources: Iterable[ImageSource]) -> npt.NDArray[np.uint8]:
        """Like calling it on each source; returns ``(n, size, size, 3)`` uint8."""
        images = [self(source) for source in sources]
        return np.stack(images) if images else np.empty((0, self.size, self.size, 3), np.uint8)

    def _open(self, source: ImageSource) -> Image.Image:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] != 3):
                raise ImageError(
                    f"an array must be uint8 of shape (h, w, 3) in RGB order, or (h, w); got {source.dtype} {source.shape}"
                )
            if 0 in source.shape:
                raise ImageError(f"an array of shape {source.shape} holds no pixel")
            return Image.fromarray(source)
        if isinstance(source, Image.Image):
            return source
        name = "<bytes>" if isinstance(source, bytes) else str(source)
        try:
            with warnings.catch_warnings():
                # The size is judged by our own limit below, from the header, before any pixel is decoded.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            pixels = image.width * image.height
            if pixels > self.max_pixels:
                raise ImageError(
                    f"{name}: {image.width}x{image.height} is more than {self.max_pixels} pixels; scale it down first"
                )
            image.load()
        except FileNotFoundError:
            raise ImageError(f"{name}: no such file") from None
        except UnidentifiedImageError:
            raise ImageError(f"{name}: not an image that can be decoded; remove it or save it again as JPEG or PNG") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"{name}: broken image ({error}); remove it or save it again") from None
        return image

    def _to_rgb(self, image: Image.Image) -> Image.Image:
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            canvas = Image.new("RGBA", rgba.size, (*self.background, 255))
            return Image.alpha_composite(canvas, rgba).convert("RGB")
        if image.mode.startswith("I;16") or image.mode == "I":
            return Image.fromarray((np.asarray(image, np.uint32) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")

    def _resize(self, image: Image.Image) -> Image.Image:
        size, (width, height) = self.size, image.size
        if self.fit == "stretch":
            return image.resize((size, size), Image.Resampling.BILINEAR)
        edge = min(width, height) if self.fit == "crop" else max(width, height)
        # Integer arithmetic, rounded half up: the same in every language.
        scaled = (max(1, (width * size * 2 + edge) // (2 * edge)), max(1, (height * size * 2 + edge) // (2 * edge)))
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (scaled[0] - size) // 2, (scaled[1] - size) // 2
        if self.fit == "crop":
            return image.crop((left, top, left + size, top + size))
        canvas = Image.new("RGB", (size, size), self.background)
        canvas.paste(image, ((size - scaled[0]) // 2, (size - scaled[1]) // 2))
        return canvas
