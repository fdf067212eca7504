"""A folder of pictures, one sub-folder a class: the format that people have.

::

    mugs/red/a.jpg                 class "red"
    mugs/red/phone/b.jpg           class "red", source "phone"
"""

from __future__ import annotations

import fnmatch
import logging
import os
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from samespace.cloud.data.config import FolderConfig
from samespace.cloud.data.files import FileImages, listed, open_files
from samespace.cloud.data.images import Item
from samespace.sdk.errors import DataError

__all__ = ["EXTENSIONS", "open_folder"]

#: What is taken for a picture, in any case.
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
#: What is no picture and is not worth a word.
_SILENT = frozenset({"thumbs.db", "desktop.ini"})
_log = logging.getLogger(__name__)


def open_folder(
    config: FolderConfig, *, cache: Path | None = None, workers: int | None = None, show: bool = True
) -> FileImages:
    """Find, check and open the pictures below ``config.root``; see :func:`samespace.cloud.data.files.open_files`.

    Raises:
        DataError: no such folder, no class folder or picture in it, a picture outside of any class, an empty class, a source
            pattern that fits nothing, or what ``open_files`` refuses.
    """
    root = config.root.expanduser()
    if not root.is_dir():
        why = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {why}; data.root must name the folder that holds one sub-folder a class")
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    stray = [entry.name for entry in entries if entry.is_file() and _is_picture(entry)]
    if stray:
        raise DataError(f"{root}: pictures lie outside of any class folder: {listed(stray)}; move each into its class's folder")
    classes = [entry for entry in entries if entry.is_dir()]
    if not classes:
        raise DataError(
            f"{root} holds no sub-folder; put the pictures of each class into a folder named after it: {root}/<class>/"
        )
    files = {folder: sorted(_pictures(folder)) for folder in classes}
    empty = [folder.name for folder, found in files.items() if not found]
    if empty:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise DataError(f"{root}: no picture in {listed(empty)}; add some ({kinds}) or remove the folder")
    items, paths = [], []
    for folder, found in files.items():
        for path in found:
            relative = _text(path.relative_to(root))
            items.append(Item(relative, _text(Path(folder.name)), _source(relative, config.sources)))
            paths.append(path)
    missing = sorted(set(config.sources) - {item.source for item in items})
    if missing:
        patterns = ", ".join(f"{name} = {config.sources[name]!r}" for name in missing)
        raise DataError(
            f"{root}: data.sources fits no picture for {patterns}; patterns are compared with paths like {items[0].key}"
        )
    # By key and not by path: the same order on every file system.
    order = sorted(range(len(items)), key=lambda index: items[index].key)
    return open_files(
        str(root),
        [items[index] for index in order],
        [paths[index] for index in order],
        on_broken=config.on_broken,
        cache=cache,
        workers=workers,
        show=show,
    )


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _pictures(folder: Path) -> Iterator[Path]:
    ignored = []
    for current, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(current, name)
            if name.startswith(".") or name.lower() in _SILENT:
                continue
            if _is_picture(path):
                yield path
            else:
                ignored.append(path.relative_to(folder).as_posix())
    if ignored:
        _log.warning("%s: ignored %d files that are no pictures: %s", folder, len(ignored), listed(sorted(ignored)))


def _text(path: Path) -> str:
    """With slashes, and composed: macOS hands out decomposed names, and the split hangs on their hash."""
    return unicodedata.normalize("NFC", path.as_posix())


def _source(relative: str, patterns: Mapping[str, str]) -> str:
    """The first pattern's name that fits; without patterns the folder between class and file."""
    for source, pattern in patterns.items():
        if fnmatch.fnmatchcase(relative, pattern):
            return source
    parts = relative.split("/")
    return parts[1] if len(parts) > 2 and not patterns else ""
