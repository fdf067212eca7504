"""Challenge pictures: what a device must embed to show that its whole pipeline, decoder to L2 norm, fits the gallery.

They are made from a bundle's probe images by a random crop and mirroring, so they are real pictures, and yet in no
bundle: an app cannot have their embeddings ready. Some lie on their side and say so in their EXIF orientation, as photos do:
else a device that ignores it would not be noticed.
"""

from __future__ import annotations

import io
import random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import BundleError

__all__ = ["CHALLENGES", "make_challenges"]

#: How many a gallery holds; a device gets a random part of them.
CHALLENGES = 64
#: Share of an edge that is cut off at most; little, for the pictures should stay typical.
_CROP = 0.06
#: Bounds of what a challenge's longer edge is cut down to, in pixels: challenges travel with every handshake, yet must be
#: larger than the model's input, or they would not show how the device resizes.
_SHORTEST, _LONGEST = 128, 512
_IMAGES = "probes/images"
#: Every so many-th challenge is a photo that was taken with the phone turned.
_TURNED_EVERY = 2
#: EXIF orientation -> what the camera did to the picture, to be undone by the app: turned by 90, 180 or 270 degrees.
_TURNS = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 8: Image.Transpose.ROTATE_270}
_ORIENTATION = 0x0112


def make_challenges(
    bundle: Bundle, embedder: Embedder, count: int = CHALLENGES, *, seed: int | None = None
) -> tuple[tuple[bytes, ...], npt.NDArray[np.float32]]:
    """Pictures and their embeddings, to found a gallery with.

    Args:
        bundle: of the cloud model.
        embedder: of the same bundle.
        seed: for tests; by default nobody can know the crops.

    Returns:
        ``count`` PNG files (JPEG those that are turned), and ``(count, d)`` float32 unit-norm embeddings of just these files.

    Raises:
        BundleError: the bundle has no probe images.
    """
    probes = list(bundle.files_below(_IMAGES).values())
    if not probes:
        raise BundleError(f"{bundle.path}: no probe images to make challenges of; export the bundle again with probes")
    chance = random.Random(seed) if seed is not None else random.SystemRandom()
    chosen = [probes[index % len(probes)] for index in chance.sample(range(max(count, len(probes))), count)]
    longest = min(_LONGEST, max(_SHORTEST, 2 * bundle.manifest.model.preprocess.size))
    images = tuple(
        _varied(image, chance, longest, chance.choice(list(_TURNS)) if place % _TURNED_EVERY == 1 else 1)
        for place, image in enumerate(chosen)
    )
    return images, embedder.embed(images)


def _varied(encoded: bytes, chance: random.Random, longest: int, orientation: int = 1) -> bytes:
    """Mirrored, and each side cut by its own random share."""
    with Image.open(io.BytesIO(encoded)) as opened:
        image = ImageOps.mirror(ImageOps.exif_transpose(opened))
    # Palette pictures and the like would be resized by their nearest colour.
    image = image.convert("RGBA" if "A" in image.mode or "transparency" in image.info else "RGB")
    width, height = image.size
    left, right = chance.uniform(0, _CROP) * width, chance.uniform(0, _CROP) * width
    top, bottom = chance.uniform(0, _CROP) * height, chance.uniform(0, _CROP) * height
    image = image.crop(
        (round(left), round(top), max(round(left) + 1, round(width - right)), max(round(top) + 1, round(height - bottom)))
    )
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return _encoded(image, orientation)


def _encoded(image: Image.Image, orientation: int) -> bytes:
    buffer = io.BytesIO()
    if orientation == 1 or image.mode != "RGB":
        # JPEG has no transparency; and only in JPEG is an orientation what every platform reads.
        image.save(buffer, "PNG")
        return buffer.getvalue()
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    # Colours at full resolution: decoders differ in how they enlarge them.
    image.transpose(_TURNS[orientation]).save(buffer, "JPEG", quality=95, subsampling=0, exif=exif)
    return buffer.getvalue()
