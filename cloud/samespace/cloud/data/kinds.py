"""The kinds of image sets that a recipe can name. A new one: its config in ``config.py``, its opener here."""

from __future__ import annotations

from pathlib import Path

from samespace.cloud.data.config import DataConfig, EmojiConfig, FolderConfig
from samespace.cloud.data.emoji import open_emoji
from samespace.cloud.data.folder import open_folder
from samespace.cloud.data.images import ImageSet
from samespace.cloud.data.manifest import open_manifest

__all__ = ["open_dataset"]


def open_dataset(config: DataConfig, *, cache: Path | None = None, workers: int | None = None, show: bool = True) -> ImageSet:
    """Open the image set that a recipe names: fetch and render, or find and check, what the cache has not yet.

    Args:
        config: which, and how.
        cache: see :func:`samespace.cloud.data.cache.cache_folder`.
        workers: processes or threads; default: one a processor.
        show: progress on stderr.

    Raises:
        ConfigError: a tool or an optional dependency is missing.
        DataError: the set cannot be used; the message says why and what to do.
    """
    if isinstance(config, EmojiConfig):
        return open_emoji(config, cache=cache, workers=workers, show=show)
    if isinstance(config, FolderConfig):
        return open_folder(config, cache=cache, workers=workers, show=show)
    return open_manifest(config, cache=cache, workers=workers, show=show)
