"""The same emoji drawn by many vendors: a cross-domain instance retrieval task with open licences.

Class = the emoji, source = the vendor's style (:data:`samespace.cloud.data.emoji_styles.STYLES`). The drawings come as npm
packages (``npm pack``, versions pinned), are rendered on white, and kept in the cache; nothing is fetched or rendered twice.

The classes are Noto's own icons without skin-tone variants; other vendors' icons and aliases belong to the class whose name
has the same letters and digits. Vendors draw some of them alike (equal flags, people and families of one silhouette, hearts
that differ in colour only, in monochrome): classes that share a pixel-identical picture are merged under the first of their
names, and of equal pictures one is kept, so that no test picture is in the training set. Blank pictures are left out before.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.cloud.data.cache import cache_folder
from samespace.cloud.data.config import EmojiConfig, Size
from samespace.cloud.data.emoji_styles import STYLES, attribution
from samespace.cloud.data.images import ArrayImages, Item
from samespace.cloud.data.npm import fetch, read_json, require_npm, tarball_name
from samespace.cloud.data.parallel import default_workers, for_each, shown
from samespace.cloud.data.render import Drawing, render, require_renderer
from samespace.sdk.files import atomic_write
from samespace.sdk.identity import canonical_json, digest

__all__ = ["SIZES", "Extent", "attribution", "merge_identical", "open_emoji"]

#: Its icons are the classes.
_CATALOGUE = "noto"
#: To be raised when anything below changes the pictures or the classes: what older versions cached is then not used.
_REVISION = 1
#: Packages that are fetched at the same time.
_DOWNLOADS = 4


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of the set a size takes."""

    classes: int | None  #: before merging; None: all
    styles: tuple[str, ...]


_CI_STYLES = ("noto", "twemoji", "openmoji", "fluent-emoji", "fluent-emoji-flat", "emojione")
SIZES: dict[Size, Extent] = {
    "ci": Extent(120, _CI_STYLES),
    "small": Extent(500, tuple(STYLES)),
    "full": Extent(None, tuple(STYLES)),
}


def open_emoji(config: EmojiConfig, *, cache: Path | None = None, workers: int | None = None, show: bool = True) -> ArrayImages:
    """The set at ``config.size``, fetched and rendered where the cache has it not.

    Args:
        config: size and resolution; the split is made by :func:`samespace.cloud.data.splits.make_split`.
        cache: see :func:`samespace.cloud.data.cache.cache_folder`.
        workers: processes that render.
        show: progress on stderr.

    Raises:
        ConfigError: npm is not installed, or the renderer is not.
        DataError: a package cannot be fetched, read or rendered.
    """
    require_renderer()
    cache = cache or cache_folder()
    extent = SIZES[config.size]
    identity = [
        _REVISION,
        importlib.metadata.version("resvg-py"),
        config.source_size,
        extent.classes,
        [[style, STYLES[style].version] for style in extent.styles],
    ]
    path = cache / "emoji" / f"{config.size}-{digest(canonical_json(identity))[:16]}.npz"
    rows = _read(path)
    if rows is None:
        rows = _make(extent, config.source_size, cache / "npm", workers or default_workers(), show)
        _write(path, rows)
    items = tuple(Item(f"{row.source}/{row.name}", row.label, row.source) for row in rows)
    return ArrayImages(f"emoji-{config.size}", items, np.stack([row.pixels for row in rows]), attribution(extent.styles))


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    label: str
    source: str
    pixels: npt.NDArray[np.uint8]


def merge_identical(names: Sequence[str], digests: Sequence[bytes]) -> tuple[list[str], list[int]]:
    """Classes that share a picture become one, and equal pictures one picture.

    Args:
        names: the class of each picture.
        digests: equal for equal pictures.

    Returns:
        The class of each picture after merging (the alphabetically first name of those merged), and the indices to keep: the
        first of each group of equal pictures.
    """
    parent = {name: name for name in names}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    first: dict[bytes, int] = {}
    for index, (name, value) in enumerate(zip(names, digests, strict=True)):
        low, high = sorted((root(name), root(names[first.setdefault(value, index)])))
        parent[high] = low
    return [root(name) for name in names], sorted(first.values())


def _make(extent: Extent, size: int, packages: Path, workers: int, show: bool) -> list[_Row]:
    icons = _fetch(extent.styles, packages, show)
    wanted = _choose(extent, icons)
    drawings: list[Drawing] = []
    places: list[tuple[str, str]] = []
    for style in extent.styles:
        for key, name in wanted.items():
            if key in icons[style].names:
                drawings.append(icons[style].drawing(key, size))
                places.append((style, name))
    with shown(f"Rendering {len(wanted)} emoji in {len(extent.styles)} styles", len(drawings), show) as bar:
        pixels = render(drawings, size, workers, bar)
    seen = [index for index in range(len(pixels)) if np.ptp(pixels[index]) > 0]
    labels, keep = merge_identical([places[i][1] for i in seen], [hashlib.sha256(pixels[i].tobytes()).digest() for i in seen])
    return [_Row(places[seen[k]][1], labels[k], places[seen[k]][0], pixels[seen[k]]) for k in keep]


def _fetch(styles: Sequence[str], folder: Path, show: bool) -> dict[str, _Icons]:
    names = {style: tarball_name(_package(style), STYLES[style].version) for style in styles}
    missing = [style for style in styles if not (folder / names[style]).exists()]
    if missing:
        require_npm()  # said before anything is begun

    def fetch_one(index: int) -> None:
        fetch(_package(styles[index]), STYLES[styles[index]].version, folder)

    with shown("Fetching emoji packages" if missing else "Checking emoji packages", len(styles), show) as bar:
        for_each(len(styles), fetch_one, workers=_DOWNLOADS, bar=bar)
    return {style: _Icons(style, read_json(folder / names[style], "icons.json")) for style in styles}


def _package(style: str) -> str:
    return f"@iconify-json/{style}"


def _choose(extent: Extent, icons: Mapping[str, _Icons]) -> dict[str, str]:
    """Key -> name of the classes; a smaller size takes those that every style draws, in the order of their hashes."""
    catalogue = icons[_CATALOGUE].own_names()
    if extent.classes is None:
        return catalogue
    styles = [icons[style].names for style in _CI_STYLES]
    everywhere = [key for key in catalogue if all(key in names for names in styles)]
    everywhere.sort(key=lambda key: hashlib.sha1(key.encode()).digest())
    return {key: catalogue[key] for key in sorted(everywhere[: extent.classes])}


class _Icons:
    """One style's ``icons.json``."""

    def __init__(self, style: str, data: Mapping[str, Any]) -> None:
        self._style, self._data = style, data
        self._aliases: Mapping[str, Any] = data.get("aliases", {})
        #: key -> the icon's or alias's name; icons come before aliases
        self.names = _by_key([*data["icons"], *self._aliases])

    def own_names(self) -> dict[str, str]:
        """Without aliases, skin tones, and the bare digits that are only parts of keycaps."""
        return {key: name for key, name in _by_key(self._data["icons"]).items() if not key.isdigit()}

    def drawing(self, key: str, size: int) -> Drawing:
        # A drawing that is not square is letterboxed: that is what SVG does with a view box in a square of another shape.
        name, mirror = self.names[key], False
        while name not in self._data["icons"]:
            alias = self._aliases[name]
            mirror ^= bool(alias.get("hFlip"))
            name = alias["parent"]
        icon = self._data["icons"][name]
        left, top, width, height = (
            icon.get(field, self._data.get(field, default))
            for field, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        body = icon["body"].replace("currentColor", "#000000")
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{size}" height="{size}">{body}</svg>'
        )
        return Drawing(f"{self._style}/{name}", svg, mirror)


def _by_key(names: Iterable[str]) -> dict[str, str]:
    """Lower-case letters and digits -> name, the first of each; skin tones left out."""
    result: dict[str, str] = {}
    for name in names:
        if "skin-tone" not in name:
            result.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), name)
    return result


def _write(path: Path, rows: Sequence[_Row]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        names=np.array([row.name for row in rows]),
        labels=np.array([row.label for row in rows]),
        sources=np.array([row.source for row in rows]),
        pixels=np.stack([row.pixels for row in rows]),
    )
    atomic_write(path, buffer.getvalue())


def _read(path: Path) -> list[_Row] | None:
    """What :func:`_write` wrote; None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names, labels, sources, pixels = (file[key] for key in ("names", "labels", "sources", "pixels"))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return [_Row(str(n), str(label), str(s), p) for n, label, s, p in zip(names, labels, sources, pixels, strict=True)]
