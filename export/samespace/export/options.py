"""What an export may be asked for beyond format and precision."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError

__all__ = ["DEFAULT_OPTIONS", "ExportOptions"]


@dataclass(frozen=True, eq=False)
class ExportOptions:
    """Options of one model's conversions.

    Attributes:
        calibration: ``(n, size, size, 3)`` uint8 preprocessed training pictures; static int8 takes the ranges of activations
            from them.
        float_layers: names of layers, as the format calls them, that int8 leaves in float.
        min_ios: oldest iOS that Core ML artifacts must run on.
        min_litert: oldest TensorFlow Lite / LiteRT runtime that TFLite artifacts must run on, e.g. ``"2.14"``.

    Raises:
        ConfigError: versions that are none.
    """

    calibration: npt.NDArray[np.uint8] | None = None
    float_layers: tuple[str, ...] = field(default=())
    min_ios: int = 17
    min_litert: str = "2.14"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?", self.min_litert):
            raise ConfigError(f"min_litert = {self.min_litert!r} is no version of TensorFlow Lite; give one such as 2.14")
        if self.min_ios < 15:
            raise ConfigError(f"min_ios = {self.min_ios}: Core ML runs ML Programs from iOS 15 on; give 17, say")

    def pictures(self, size: int) -> npt.NDArray[np.uint8]:
        """The calibration pictures, for a model of this size.

        Raises:
            ConfigError: there are none, or they are not uint8 of shape ``(n, size, size, 3)``.
        """
        found = self.calibration
        if found is None or not len(found):
            raise ConfigError(
                "static int8 needs calibration pictures: train the run again so that it keeps some, or give "
                "ExportOptions(calibration=...)"
            )
        if found.dtype != np.uint8 or found.ndim != 4 or found.shape[1:] != (size, size, 3):
            raise ConfigError(
                f"calibration pictures must be uint8 of shape (n, {size}, {size}, 3), as the model takes them; got "
                f"{found.dtype} {found.shape}"
            )
        return found


DEFAULT_OPTIONS = ExportOptions()
