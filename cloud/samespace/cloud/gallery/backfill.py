"""Embedding anew, by an upgrade's new model, what the old one embedded: in the order that helps most, and never twice.

What the new model has already is known by the gallery alone, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np

from samespace.cloud.gallery.ingest import embed_readable, find_images
from samespace.cloud.gallery.remote_upgrade import state
from samespace.sdk.adapter import Adapter
from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.gallery.client import GalleryClient
from samespace.sdk.gallery.wire import API, Item, Vectors
from samespace.sdk.gallery.wire_upgrade import BackfillBatch, Backfilled, LeftItems
from samespace.sdk.identity import digest

__all__ = ["BackfillReport", "Order", "Pictures", "Work", "backfill", "plan_backfill", "read_traffic"]

Order = Literal["uncertainty", "traffic", "random", "oldest"]
#: Seconds between two looks at an upgrade that was paused.
_PAUSED = 1.0
_PAGE = 512
_IS_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Work:
    """An item that is to be embedded anew.

    Attributes:
        path: where below the folder its picture is, as its metadata say.
        seen: SHA-256 of the old model's vector: what it stands for may change meanwhile.
    """

    item_id: str
    path: str
    seen: str


@dataclass
class BackfillReport:
    """What became of the items.

    Attributes:
        kept: embedded anew, and on the service's disk.
        changed: were replaced or deleted meanwhile; those that are still there are taken up again.
        missing: id and reason of each whose picture cannot be found or decoded. They stay as the old model embedded them.
    """

    kept: int = 0
    changed: int = 0
    missing: dict[str, str] = field(default_factory=dict)


class Pictures:
    """The pictures that the items of a gallery were made of.

    Args:
        source: what was added, see :func:`~samespace.cloud.gallery.ingest.find_images`: a folder or a table. An item whose id
            is a file's SHA-256 is found wherever it was moved to; another one is found by its metadata's ``path`` alone.

    Raises:
        DataError: there is none.
    """

    def __init__(self, source: Path) -> None:
        self._images = find_images(source)
        self._base = (source if source.is_dir() else source.parent).resolve()
        self._by_digest: dict[str, Path] | None = None

    def read(self, work: Work) -> bytes:
        """The picture of an item.

        Raises:
            DataError: it is not there.
        """
        for path in self._places(work):
            try:
                data = path.read_bytes()
            except OSError:
                continue
            if digest(data) == work.item_id or not _IS_DIGEST.fullmatch(work.item_id):
                return data
        raise DataError(f"no file below {self._base} is its picture")

    def _places(self, work: Work) -> Iterator[Path]:
        path = (self._base / work.path).resolve()
        # What a gallery says of its items must not lead out of the folder.
        if work.path and path.is_relative_to(self._base):
            yield path
        if _IS_DIGEST.fullmatch(work.item_id):
            if self._by_digest is None:
                # Only for what was moved: every file has to be read.
                self._by_digest = {digest(image.path.read_bytes()): image.path for image in self._images}
            if moved := self._by_digest.get(work.item_id):
                yield moved


def plan_backfill(
    client: GalleryClient,
    order: Order,
    *,
    adapter: Adapter | None = None,
    traffic: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[Work]:
    """What is left to do, the first first.

    Args:
        client: with the new model's bundle.
        order: ``uncertainty`` (of the adapter about the old vector, times the traffic), ``traffic``, or the controls:
            ``random`` and ``oldest`` (first added, first embedded anew).
        adapter: maps old embeddings, with an uncertainty head.
        traffic: item id -> how often it is looked for; what is not named counts as the least that is.
        seed: of ``random``.

    Raises:
        ConfigError: an order without what it is made of.
        UpgradeRefusedError: no upgrade of the client's space to its model is under way.
    """
    if order == "uncertainty" and (adapter is None or not adapter.is_uncertain):
        raise ConfigError(
            "order 'uncertainty' needs an adapter with an uncertainty head: samespace adapters fit --method network"
        )
    if order == "traffic" and not traffic:
        raise ConfigError("order 'traffic' needs the traffic: a table of item ids and how often each is looked for")
    found: list[Work] = []
    gains: list[float] = []
    least = min(traffic.values()) if traffic else 1.0
    for page in _left(client, "oldest" if order == "oldest" else "id"):
        if not page:
            continue
        rows = np.concatenate([item.vector.array() for item in page])
        sigma = adapter.uncertainty(rows) if order == "uncertainty" and adapter is not None else np.ones(len(page))
        found += [
            Work(item.item_id, str(item.metadata.get("path") or ""), digest(row.tobytes()))
            for item, row in zip(page, rows, strict=True)
        ]
        gains += [s * (traffic or {}).get(item.item_id, least) for s, item in zip(sigma.tolist(), page, strict=True)]
    if order == "random":
        return [found[place] for place in np.random.default_rng(seed).permutation(len(found))]
    if order == "oldest":
        return found
    return [found[place] for place in np.argsort(-np.asarray(gains), kind="stable")]


def backfill(
    client: GalleryClient,
    work: Sequence[Work],
    pictures: Pictures,
    *,
    rate: float = 0.0,
    batch: int = 32,
    advance: Callable[[int, str], None] = lambda items, note: None,
) -> BackfillReport:
    """Embed items anew; may be killed at any moment, and run again with what :func:`plan_backfill` says then.

    Args:
        client: with the new model's bundle.
        rate: pictures a second at most; 0: as fast as it goes.
        advance: told how many more items are done, and a word for who waits.

    Raises:
        GalleryUnavailableError: the service went away; what was kept is kept.
        UpgradeRefusedError: the upgrade was finished meanwhile.
    """
    report, began, sent = BackfillReport(), time.monotonic(), 0
    for start in range(0, len(work), batch):
        part = {one.item_id: one for one in work[start : start + batch]}
        images: dict[str, bytes] = {}
        for item_id, one in part.items():
            try:
                images[item_id] = pictures.read(one)
            except DataError as error:
                report.missing[item_id] = str(error)
        vectors, broken = embed_readable(client.embedder, images)
        report.missing |= broken
        if vectors:
            message = BackfillBatch(
                ids=tuple(vectors),
                vectors=Vectors.of(np.stack(list(vectors.values()))),
                seen=tuple(part[item_id].seen for item_id in vectors),
            )
            kept = len(_sent(client, message, advance).kept)
            report.kept += kept
            report.changed += len(vectors) - kept
        sent += len(part)
        advance(len(part), "")
        if rate and (early := began + sent / rate - time.monotonic()) > 0:
            time.sleep(early)
    return report


def read_traffic(file: Path) -> dict[str, float]:
    """How often each item is looked for: a CSV table with the columns ``item_id`` and ``queries``.

    Raises:
        DataError: no such table, or a number that is none.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as table:
            rows = list(csv.DictReader(table, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as a table ({error})") from None
    traffic: dict[str, float] = {}
    for number, row in enumerate(rows, start=2):
        try:
            traffic[row["item_id"]] = float(row["queries"])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{file}, row {number}: needs the columns 'item_id' and 'queries', a number; found {row}") from None
        if not 0 <= traffic[row["item_id"]] < float("inf"):
            raise DataError(f"{file}, row {number}: queries must be 0 or more, got {row['queries']}")
    return traffic


def _left(client: GalleryClient, order: str) -> Iterator[Sequence[Item]]:
    after: str | None = ""
    while after is not None:
        path = f"{API}/backfill?order={order}&limit={_PAGE}&after={quote(after, safe='')}"
        answer = client.run(client.session.call("GET", path, LeftItems))
        yield answer.items
        after = answer.after


def _sent(client: GalleryClient, message: BackfillBatch, advance: Callable[[int, str], None]) -> Backfilled:
    while True:
        answer = client.run(client.session.call("POST", f"{API}/backfill", Backfilled, message))
        if not answer.paused:
            return answer
        while state(client, client.embedder.space_id).paused:
            advance(0, "paused")
            time.sleep(_PAUSED)
