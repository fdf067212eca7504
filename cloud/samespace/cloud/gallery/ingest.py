"""Filling a gallery from a folder or a table of images, so that it can be killed at any moment and run again.

An item's id is the SHA-256 of its file. So the same picture is one item however often and from wherever it is added,
and what the service has acknowledged need not be embedded again.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samespace.cloud.parquet import load_pyarrow
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import DataError, ImageError, SpaceMismatchError
from samespace.sdk.gallery.client import GalleryClient, NewItem
from samespace.sdk.identity import digest

__all__ = ["ImageFile", "IngestReport", "embed_readable", "find_images", "ingest"]

_PARQUET = (".parquet", ".pq")
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFile:
    """A file to add, and what is to come back with its hits."""

    path: Path
    metadata: dict[str, str]


@dataclass
class IngestReport:
    """What became of the files.

    Attributes:
        added: acknowledged in this run.
        known: were acknowledged before.
        copies: had the same bytes as another file of this run.
        broken: path and reason of each file that cannot be decoded.
    """

    added: int = 0
    known: int = 0
    copies: int = 0
    broken: list[tuple[Path, str]] = field(default_factory=list)


def find_images(source: Path) -> list[ImageFile]:
    """The images of a folder (and the folders in it), or of a table.

    A folder's images get their ``path`` below it, and the name of the folder they are in as ``label``. A table is a CSV
    or Parquet file with the column ``path`` (relative to the table) and any others; each becomes metadata.

    Raises:
        DataError: nothing is there, no image is in it, or a table without paths.
    """
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
        images = [ImageFile(path, _from_folder(path.relative_to(source))) for path in paths]
    elif source.is_file():
        images = [
            ImageFile(source.parent / row["path"], {name: text for name, text in row.items() if text}) for row in _table(source)
        ]
    else:
        raise DataError(
            f"{source}: no such folder or table; give a folder of images, or a CSV or Parquet file with their paths"
        )
    if not images:
        raise DataError(f"{source}: no images in it; known are {', '.join(sorted(_SUFFIXES))}")
    return images


def ingest(
    client: GalleryClient,
    embedder: Embedder,
    images: Iterable[ImageFile],
    *,
    batch: int = 32,
    advance: Callable[[int], None] = lambda files: None,
    acknowledged: Callable[[Sequence[str]], None] = lambda ids: None,
) -> IngestReport:
    """Add images to a gallery; run it again to go on where it was cut short.

    Args:
        client: with the same embedder.
        batch: files at a time; each batch is one transaction of the gallery.
        advance: told how many more files are done.
        acknowledged: told the ids that are on the service's disk now.

    Raises:
        GalleryUnavailableError: the service went away; what was acknowledged is kept.
        HandshakeRefusedError: the embedder's vectors do not fit the gallery.
        SpaceMismatchError: the embedder's model is not the one that the gallery is made of.
    """
    report, seen = IngestReport(), set[str]()
    serving = client.handshake().serving_model_id
    if serving != embedder.model_id:
        raise SpaceMismatchError(
            f"this gallery is made of vectors of the model {serving}, not of {embedder.model_id}, which may search "
            "it, not fill it; give the bundle of the serving model (--bundle)"
        )
    iterator: Iterator[ImageFile] = iter(images)
    while files := list(islice(iterator, batch)):
        fresh: dict[str, tuple[ImageFile, bytes]] = {}
        for image in files:
            _read(image, fresh, seen, report)
        known = client.known(fresh) if fresh else set()
        report.known += len(known)
        wanted = {key: data for key, (_, data) in fresh.items() if key not in known}
        vectors, broken = embed_readable(embedder, wanted)
        report.broken.extend((fresh[item_id][0].path, reason) for item_id, reason in broken.items())
        items = [NewItem(item_id, vector, fresh[item_id][0].metadata) for item_id, vector in vectors.items()]
        if items:
            ids = client.add(items)
            report.added += len(ids)
            acknowledged(ids)
        advance(len(files))
    return report


def embed_readable(
    embedder: Embedder, images: Mapping[str, bytes]
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    """Embeddings of the images that can be decoded, by key, and why the others cannot."""
    tensors, broken = {}, {}
    for key, data in images.items():
        try:
            tensors[key] = embedder.preprocess(data)
        except ImageError as error:
            broken[key] = str(error).removeprefix("<bytes>: ")
    rows = embedder.embed_tensors(np.stack(list(tensors.values()))) if tensors else ()
    return dict(zip(tensors, rows, strict=True)), broken


def _read(image: ImageFile, fresh: dict[str, tuple[ImageFile, bytes]], seen: set[str], report: IngestReport) -> None:
    try:
        data = image.path.read_bytes()
    except OSError as error:
        report.broken.append((image.path, error.strerror or str(error)))
        return
    item_id = digest(data)
    if item_id in seen:
        report.copies += 1
        return
    seen.add(item_id)
    fresh[item_id] = (image, data)


def _from_folder(path: Path) -> dict[str, str]:
    metadata = {"path": _clean(path.as_posix())}
    if path.parent.name:
        metadata["label"] = _clean(path.parent.name)
    return metadata


def _table(path: Path) -> list[dict[str, str]]:
    suffix = path.suffix.lower()
    if suffix not in (".csv", *_PARQUET):
        raise DataError(f"{path}: neither a folder nor a .csv or .parquet table of images")
    try:
        rows = _parquet(path) if suffix in _PARQUET else _csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}); save it again") from None
    # Rows are counted as a spreadsheet does: the header is row 1.
    for number, row in enumerate(rows, start=2):
        if "path" not in row:
            raise DataError(f"{path}: has no column 'path'; it has {', '.join(row)}")
        if not row["path"]:
            raise DataError(f"{path}, row {number}: path is empty; fill it in or remove the row")
    return rows


def _csv(path: Path) -> list[dict[str, str]]:
    # Spreadsheets write a byte order mark.
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        return [{name: _clean(value or "") for name, value in row.items() if isinstance(name, str)} for row in rows]


def _parquet(path: Path) -> list[dict[str, str]]:
    rows = load_pyarrow(path).parquet.read_table(path).to_pylist()
    return [{name: "" if value is None else _clean(str(value)) for name, value in row.items()} for row in rows]


def _clean(text: str) -> str:
    """Names of files may hold bytes that are no text; a message may not."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
