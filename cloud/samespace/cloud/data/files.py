"""Image sets whose pictures are files: what folders and manifests have in common.

Every file is decoded once when the set is opened, exactly as training will do it, so that a broken one is named before
training starts and not an hour later. What was found is remembered by path, size and modification time.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from samespace.cloud.data.cache import cache_folder
from samespace.cloud.data.images import Item, refuse_duplicate_keys
from samespace.cloud.data.parallel import default_workers, for_each, shown
from samespace.sdk.errors import DataError, ImageError
from samespace.sdk.files import atomic_write
from samespace.sdk.identity import canonical_json, digest
from samespace.sdk.preprocess import Preprocess

__all__ = ["FileImages", "listed", "open_files"]

#: Names in one message; the rest are counted.
_LISTED = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FileImages:
    """Pictures in files. Made by :func:`open_files`, which has decoded each of them once."""

    name: str
    items: Sequence[Item]
    paths: Sequence[Path]
    fingerprint: str
    attribution: str = ""

    def load(self, index: int) -> Image.Image:
        try:
            # From memory: a file with several frames would stay open.
            image = Image.open(io.BytesIO(self.paths[index].read_bytes()))
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"{self.paths[index]}: cannot be read any more ({error}); restore it or open the set again"
            ) from error
        return image

    def encoded(self, index: int) -> bytes:
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.paths[index]}: cannot be read any more ({error}); restore it or open the set again"
            ) from error


def open_files(
    name: str,
    items: Sequence[Item],
    paths: Sequence[Path],
    *,
    on_broken: Literal["error", "skip"],
    cache: Path | None = None,
    workers: int | None = None,
    show: bool = True,
) -> FileImages:
    """Decode every file once and make an image set of those that are sound.

    Args:
        name: where they come from, for messages.
        items: one a file.
        paths: the files.
        on_broken: stop and list the broken ones, or leave them out with a warning.
        cache: see :func:`samespace.cloud.data.cache.cache_folder`.
        workers: threads.
        show: progress on stderr.

    Raises:
        DataError: no picture at all, a broken one (with ``on_broken="error"``), a key that is there twice, or a class with a
            single picture.
    """
    if not items:
        raise DataError(f"{name}: it lists no picture; add some")
    refuse_duplicate_keys(name, items)
    findings = _inspect(name, paths, (cache or cache_folder()) / "inspected", workers or default_workers(), show)
    broken = [f"{item.key} ({finding.error})" for item, finding in zip(items, findings, strict=True) if finding.error]
    if broken and on_broken == "error":
        raise DataError(
            f"{name}: {len(broken)} of {len(items)} pictures cannot be decoded: {listed(broken)}; "
            'save them again, remove them, or leave them out with on_broken = "skip"'
        )
    if broken:
        _log.warning("%s: left out %d of %d pictures that cannot be decoded: %s", name, len(broken), len(items), listed(broken))
    sound = [index for index, finding in enumerate(findings) if not finding.error]
    kept = [items[index] for index in sound]
    if not kept:
        raise DataError(f"{name}: none of its {len(items)} pictures can be decoded")
    _refuse_lonely(name, kept)
    _warn_of_copies(name, kept, [findings[index].content for index in sound])
    contents = [[items[index].key, findings[index].content] for index in sound]
    return FileImages(name, kept, [paths[index] for index in sound], digest(canonical_json(contents)))


def listed(names: Sequence[str]) -> str:
    """The first of ``names``, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


@dataclass(frozen=True, slots=True)
class _Finding:
    content: str  #: SHA-256 of the file
    error: str  #: why it cannot be decoded; empty where it can


def _inspect(name: str, paths: Sequence[Path], folder: Path, workers: int, show: bool) -> list[_Finding]:
    memory = folder / f"{digest(os.path.abspath(name).encode())[:32]}.json"
    try:
        known = {entry[0]: entry[1:] for entry in json.loads(memory.read_bytes())}
    except (OSError, ValueError, TypeError, IndexError):
        known = {}
    findings: list[_Finding | None] = [None] * len(paths)
    stamps = [_stamp(path) for path in paths]
    todo = []
    for index, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
        entry = known.get(os.path.abspath(path))
        if stamp and entry and entry[:2] == stamp:
            findings[index] = _Finding(entry[2], entry[3])
        else:
            todo.append(index)
    # The smallest size: what matters here is that decoding ends well, not the pixels.
    preprocess = Preprocess(size=8)

    def look(position: int) -> None:
        findings[todo[position]] = _look(paths[todo[position]], preprocess)

    if todo:
        with shown(f"Checking {len(todo)} pictures", len(todo), show) as bar:
            for_each(len(todo), look, workers=workers, bar=bar)
    done = [finding for finding in findings if finding is not None]
    entries = [
        [os.path.abspath(path), *stamp, finding.content, finding.error]
        for path, stamp, finding in zip(paths, stamps, done, strict=True)
        if stamp
    ]
    if todo:
        atomic_write(memory, json.dumps(entries))
    return done


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _look(path: Path, preprocess: Preprocess) -> _Finding:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return _Finding("", "no such file")
    except OSError as error:
        return _Finding("", str(error.strerror or error))
    content = digest(data)
    try:
        preprocess(data)
    except ImageError as error:
        return _Finding(content, str(error).removeprefix("<bytes>: "))
    except Exception as error:  # a decoder's own exception: to the user it is a broken picture all the same
        return _Finding(content, f"{type(error).__name__}: {error}")
    return _Finding(content, "")


def _refuse_lonely(name: str, items: Sequence[Item]) -> None:
    counts = Counter(item.label for item in items)
    lonely = [f"{item.label} ({item.key})" for item in items if counts[item.label] == 1]
    if lonely:
        raise DataError(
            f"{name}: {len(lonely)} of {len(counts)} classes have one picture only: {listed(lonely)}; "
            "a class needs two at least, one to search with and one to be found: add pictures or remove the class"
        )


def _warn_of_copies(name: str, items: Sequence[Item], contents: Sequence[str]) -> None:
    first: dict[str, str] = {}
    copies = [
        f"{item.key} = {first[content]}"
        for item, content in zip(items, contents, strict=True)
        if first.setdefault(content, item.key) != item.key
    ]
    if copies:
        _log.warning(
            "%s: %d pictures are byte for byte copies of others, which flatters every retrieval figure; remove them: %s",
            name,
            len(copies),
            listed(copies),
        )
