"""Challenge pictures: what a device must embed to show that its whole pipeline, decoder to L2 norm, fits the gallery.

They are made from a bundle's probe images by a random crop and mirroring, so they are real pictures, and yet in no
bundle: an app cannot have their embeddings ready.
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


def make_challenges(
    bundle: Bundle, embedder: Embedder, count: int = CHALLENGES, *, seed: int | None = None
) -> tuple[tuple[bytes, ...], npt.NDArray[np.float32]]:
    """Pictures and their embeddings, to found a gallery with.

    Args:
        bundle: of the cloud model.
        embedder: of the same bundle.
        seed: for tests; by default nobody can know the crops.

    Returns:
        ``count`` PNG files, and ``(count, d)`` float32 unit-norm embeddings of just these files.

    Raises:
        BundleError: the bundle has no probe images.
    """
    probes = list(bundle.files_below(_IMAGES).values())
    if not probes:
        raise BundleError(f"{bundle.path}: no probe images to make challenges of; export the bundle again with probes")
    chance = random.Random(seed) if seed is not None else random.SystemRandom()
    chosen = [probes[index % len(probes)] for index in chance.sample(range(max(count, len(probes))), count)]
    longest = min(_LONGEST, max(_SHORTEST, 2 * bundle.manifest.model.preprocess.size))
    images = tuple(_varied(image, chance, longest) for image in chosen)
    return images, embedder.embed(images)


def _varied(encoded: bytes, chance: random.Random, longest: int) -> bytes:
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
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
