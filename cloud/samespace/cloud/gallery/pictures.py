"""Challenge pictures from outside: judged before they are kept, for every device will have to decode them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

from PIL import Image

from samespace.sdk.errors import ConfigError

__all__ = ["checked_pictures"]

#: Pixels of one picture; challenges have at most 512 x 512.
_MOST_PIXELS = 4 << 20
_FORMATS = ("PNG", "JPEG")


def checked_pictures(images: Sequence[bytes]) -> Sequence[bytes]:
    """The same encoded pictures; only their headers are read, so a bomb does not go off here either.

    Raises:
        ConfigError: not PNG or JPEG, or larger than four million pixels; names the picture.
    """
    for place, image in enumerate(images):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(image), formats=_FORMATS) as opened:
                    width, height = opened.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ConfigError(
                f"challenge picture {place}: neither PNG nor JPEG that can be read ({error}); send another"
            ) from None
        if width * height > _MOST_PIXELS:
            raise ConfigError(
                f"challenge picture {place}: {width} x {height} pixels are more than a device should decode; shrink it"
            )
    return images
