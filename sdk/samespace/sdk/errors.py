"""Every error that samespace raises on purpose.

    SamespaceError
    ├── ConfigError            a recipe, an argument or an environment that cannot work
    │   └── MissingExtraError  an optional dependency is not installed; says which extra to install
    ├── ImageError             a picture that cannot be decoded, or is too large to be decoded safely
    ├── DataError              a data set that cannot be used (empty folder, a class with one image, ...)
    ├── BundleError            a bundle that cannot be opened
    │   ├── IntegrityError     a file is missing, extra, linked, escaping or changed
    │   ├── SignatureError     unsigned, signed by an unknown key, or a signature that does not fit
    │   └── FormatVersionError written by a newer samespace
    ├── RuntimeFailure         a runtime refused an artifact, or answered with something that is no embedding
    ├── SpaceMismatchError     vectors that are not comparable: other space, other dimension, no record
    ├── EmbeddingError         NaN, infinite or zero-norm vectors
    ├── ExportError            a conversion failed, or its result does not match the model
    └── GalleryError           the gallery service or its store
        ├── GalleryUnavailableError  nobody answers there
        └── HandshakeRefusedError    the device's embeddings do not fit the gallery

Each message names the culprit (file, field, id) and the mend. Catch :class:`SamespaceError` to catch them all.
"""

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "EmbeddingError",
    "ExportError",
    "FormatVersionError",
    "GalleryError",
    "GalleryUnavailableError",
    "HandshakeRefusedError",
    "ImageError",
    "IntegrityError",
    "MissingExtraError",
    "RuntimeFailure",
    "SamespaceError",
    "SignatureError",
    "SpaceMismatchError",
]


class SamespaceError(Exception):
    """Base of all errors that samespace raises on purpose."""


class ConfigError(SamespaceError):
    """A recipe, an argument or an environment that cannot work."""


class MissingExtraError(ConfigError):
    """An optional dependency is not installed.

    Args:
        extra: the extra of this distribution that brings it, e.g. ``"tflite"``.
        needed_for: what the user asked for, e.g. ``"running a .tflite artifact"``.
    """

    def __init__(self, extra: str, needed_for: str) -> None:
        self.extra = extra
        super().__init__(f"{needed_for} needs an optional dependency: pip install 'samespace[{extra}]'")


class ImageError(SamespaceError):
    """A picture that cannot be decoded, or is too large to be decoded safely."""


class DataError(SamespaceError):
    """A data set that cannot be used."""


class BundleError(SamespaceError):
    """A bundle that cannot be opened."""


class IntegrityError(BundleError):
    """A file of a bundle is missing, extra, linked, escaping or changed."""


class SignatureError(BundleError):
    """A bundle is unsigned, signed by an unknown key, or its signature does not fit."""


class FormatVersionError(BundleError):
    """A bundle or record was written by a newer samespace."""


class RuntimeFailure(SamespaceError):  # noqa: N818 - "RuntimeError" is taken
    """A runtime refused an artifact, or answered with something that is no embedding."""


class SpaceMismatchError(SamespaceError):
    """Vectors that are not comparable: other space, other dimension, or no compatibility record."""


class EmbeddingError(SamespaceError):
    """NaN, infinite or zero-norm vectors.

    Attributes:
        causes: of a refused handshake: the known mistakes that explain it, best first.
    """

    causes: tuple[str, ...] = ()


class ExportError(SamespaceError):
    """A conversion failed, or its result does not match the model."""


class GalleryError(SamespaceError):
    """The gallery service or its store refused or failed."""


class GalleryUnavailableError(GalleryError):
    """Nobody answers at the gallery's address."""


class HandshakeRefusedError(GalleryError):
    """The device's embeddings do not fit the gallery.

    Attributes:
        causes: the known mistakes that explain it, best first; empty when none does.
    """

    causes: tuple[str, ...] = ()
