"""Filling a gallery from many images, with all cores, a GPU or a cluster; it can be killed at any moment and run again.

An item's id is the SHA-256 of its file. What the gallery holds is not embedded again; what was embedded and not acknowledged is
taken from the ledger. So a run that was killed embeds again only the shards that were under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from samespace.cloud.gallery.ingest import ImageFile, IngestReport
from samespace.cloud.gallery.ledger import Ledger
from samespace.cloud.gallery.shards import Embed, EmbeddedShard, Shard, sharded
from samespace.sdk.errors import SpaceMismatchError
from samespace.sdk.gallery.client import GalleryClient, NewItem
from samespace.sdk.identity import digest

__all__ = ["add_in_bulk"]

#: Files that are hashed and asked about at once.
_ASKED = 512


def add_in_bulk(
    client: GalleryClient,
    images: Sequence[ImageFile],
    embed: Embed,
    ledger: Ledger,
    *,
    shard: int = 128,
    advance: Callable[[int], None] = lambda files: None,
) -> IngestReport:
    """Add images to a gallery; run it again, with the same ledger, to go on where it was cut short.

    Args:
        client: its embedder's model must be the one that the gallery is made of.
        embed: see :mod:`~samespace.cloud.gallery.shards`.
        shard: images that are embedded, and added, together.
        advance: told how many more files are done.

    Raises:
        GalleryUnavailableError: the service went away; what was acknowledged is kept.
        SpaceMismatchError: the gallery is made of another model's vectors.
    """
    report = IngestReport()
    serving, mine = client.handshake().serving_model_id, client.embedder.model_id
    if serving != mine:
        raise SpaceMismatchError(
            f"this gallery is made of vectors of the model {serving}, not of {mine}, which may search it, not fill it; give "
            "the bundle of the serving model (--bundle)"
        )
    for done in ledger.pending():
        _send(client, ledger, done, report, again=True)
    for done in embed(_to_embed(client, images, ledger, shard, report, advance)):
        # On disk before it is sent: from here on it is never embedded again.
        ledger.embedded(done)
        report.broken.extend(done.broken)
        _send(client, ledger, done, report)
        advance(len(done.shard.files))
    return report


def _send(client: GalleryClient, ledger: Ledger, done: EmbeddedShard, report: IngestReport, *, again: bool = False) -> None:
    # Of a run that was killed, some may be there: acknowledged to nobody.
    known = client.known(done.ids) if again else set()
    items = (NewItem(*item) for item in zip(done.ids, done.vectors, done.metadata, strict=True) if item[0] not in known)
    report.added += len(client.add(items, batch=512))
    ledger.acknowledged(done.shard.key)


def _to_embed(
    client: GalleryClient,
    images: Sequence[ImageFile],
    ledger: Ledger,
    size: int,
    report: IngestReport,
    advance: Callable[[int], None],
) -> Iterator[Shard]:
    """Shards of the files that the gallery does not hold."""
    seen: set[str] = set()
    new: list[tuple[str, ImageFile]] = []
    for files in sharded(images, _ASKED):
        ids = _item_ids(files, ledger, report)
        fresh = list[tuple[str, ImageFile]]()
        for image in files:
            item_id = ids.get(image.path.as_posix())
            if item_id is not None and item_id in seen:
                report.copies += 1
            elif item_id is not None:
                seen.add(item_id)
                fresh.append((item_id, image))
        known = client.known(item_id for item_id, _ in fresh)
        report.known += len(known)
        wanted = [pair for pair in fresh if pair[0] not in known]
        advance(len(files) - len(wanted))
        new += wanted
        while len(new) >= size:
            yield _shard(new[:size])
            del new[:size]
    if new:
        yield _shard(new)


def _item_ids(files: Sequence[ImageFile], ledger: Ledger, report: IngestReport) -> dict[str, str]:
    """Path -> id, of those that can be read; a file that was not touched since another run is not read again."""
    remembered = ledger.item_ids([image.path for image in files])
    ids, read = {path.as_posix(): item_id for path, item_id in remembered.items()}, {}
    for image in files:
        if image.path in remembered:
            continue
        mark = ledger.mark(image.path)
        try:
            item_id = digest(image.path.read_bytes())
        except OSError as error:
            report.broken.append((image.path, error.strerror or str(error)))
            continue
        ids[image.path.as_posix()] = item_id
        read[image.path] = (mark, item_id)
    if read:
        ledger.note(read)
    return ids


def _shard(files: Sequence[tuple[str, ImageFile]]) -> Shard:
    key = digest("\n".join(item_id for item_id, _ in files).encode())
    return Shard(key, tuple((item_id, image.path) for item_id, image in files), tuple(image.metadata for _, image in files))
