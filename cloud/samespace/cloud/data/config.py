"""What a recipe says about its data: one pydantic model a kind of image set, unknown keys refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from samespace.cloud.data.emoji_styles import GALLERY_STYLES, QUERY_STYLES, STYLES
from samespace.sdk.errors import ConfigError

__all__ = ["DataConfig", "EmojiConfig", "FolderConfig", "ManifestConfig", "Size", "SplitConfig", "chosen_size"]

#: How much of the built-in data and of the recipes' work: ``ci`` takes seconds, ``full`` is what the figures in the docs are.
Size = Literal["ci", "small", "full"]


def chosen_size() -> Size:
    """The size that the environment variable ``SAMESPACE_SIZE`` asks for; ``full`` where it is not set.

    Raises:
        ConfigError: it holds another word.
    """
    value = os.environ.get("SAMESPACE_SIZE") or "full"
    for size in get_args(Size):
        if value == size:
            return size
    raise ConfigError(f"SAMESPACE_SIZE={value!r} is no size; set it to one of: {', '.join(get_args(Size))}")


class SplitConfig(BaseModel):
    """How classes are divided into training, validation and test, and pictures into queries and gallery."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_percent: int = Field(default=60, ge=1, le=99, description="of the classes; the rest are unseen test classes")
    validation_percent: int = Field(default=15, ge=0, le=50, description="of the training classes; 0: no validation")
    query_sources: tuple[str, ...] = Field(default=(), description="sources that query; empty: all but gallery_sources")
    gallery_sources: tuple[str, ...] = Field(default=(), description="sources that are searched; empty: all but query_sources")
    query_percent: int = Field(default=50, ge=1, le=99, description="of a class's pictures, where no sources are named")

    @model_validator(mode="after")
    def _disjoint(self) -> SplitConfig:
        both = sorted(set(self.query_sources) & set(self.gallery_sources))
        if both:
            raise ValueError(f"{', '.join(both)} cannot be both in query_sources and in gallery_sources: take it out of one")
        return self


class EmojiConfig(SplitConfig):
    """The same emoji drawn by many vendors: class = the emoji, source = the vendor's style."""

    kind: Literal["emoji"] = "emoji"
    size: Size = Field(default_factory=chosen_size, description="ci: 120 classes x 6 styles; small: 500 x 12; full: all")
    source_size: int = Field(default=64, ge=16, le=256, description="edge of the rendered picture in pixels")
    query_sources: tuple[str, ...] = QUERY_STYLES
    gallery_sources: tuple[str, ...] = GALLERY_STYLES

    @model_validator(mode="after")
    def _known_families(self) -> EmojiConfig:
        if not self.query_sources or not self.gallery_sources:
            raise ValueError("query_sources and gallery_sources must each name at least one style")
        unknown = [style for style in (*self.query_sources, *self.gallery_sources) if style not in STYLES]
        if unknown:
            raise ValueError(f"no such style: {', '.join(unknown)}; there are {', '.join(STYLES)}")
        families = {STYLES[style].family for style in self.query_sources} & {
            STYLES[style].family for style in self.gallery_sources
        }
        if families:
            raise ValueError(
                f"styles of the family {', '.join(sorted(families))} stand in query_sources and in gallery_sources; "
                "drawings of one family are too alike to be told a search: take them out of one"
            )
        return self


class _FilesConfig(SplitConfig):
    source_size: int = Field(
        default=128, ge=16, le=1024, description="edge in pixels that pictures are cached and augmented at"
    )
    on_broken: Literal["error", "skip"] = Field(
        default="error", description="pictures that cannot be decoded: stop and list them, or leave them out with a warning"
    )


class FolderConfig(_FilesConfig):
    """A folder with one sub-folder a class; a second level of folders, where there is one, names the source."""

    kind: Literal["folder"] = "folder"
    root: Path = Field(description="the folder that holds the class folders")
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="source -> pattern (as in a shell) of the path below root; the first that fits names a picture's source",
    )


class ManifestConfig(_FilesConfig):
    """A CSV or Parquet table with the columns path and label, and optionally split and source."""

    kind: Literal["manifest"] = "manifest"
    path: Path = Field(description="the .csv or .parquet file; the paths in it are relative to its folder")


#: Any of them, told apart by ``kind``.
DataConfig = Annotated[EmojiConfig | FolderConfig | ManifestConfig, Field(discriminator="kind")]
