"""The change feed: what a replica must fetch or forget to be as the gallery is."""

from __future__ import annotations

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.journal import Entry
from samespace.cloud.gallery.membership import Claim
from samespace.sdk.gallery.ranking import matches
from samespace.sdk.gallery.wire_sync import Change, ChangePage, ChangesRequest

__all__ = ["changes_since"]


def changes_since(gallery: Gallery, claim: Claim, request: ChangesRequest) -> ChangePage:
    """A page of the changes to the claim's tenant's items of the serving model.

    With a filter, an item that does not match (any more) counts as deleted.

    Raises:
        SpaceMismatchError: no record says that the claim's model may search the serving model's vectors.
    """
    serving, partition = gallery.replicated(claim)
    entries = gallery.journal.read(partition, request.after, request.limit)
    cursor, more = (entries[-1].cursor, len(entries) == request.limit) if entries else (request.after, False)
    told = _filtered(gallery, partition, request, entries) if request.where else entries
    if not request.deletions:
        told = [entry for entry in told if entry.kind == "put"]
    return ChangePage(
        feed=gallery.journal.feed,
        model_id=serving,
        changes=tuple(Change(cursor=entry.cursor, item_id=entry.item_id, kind=entry.kind) for entry in told),
        cursor=cursor,
        more=more,
    )


def _filtered(gallery: Gallery, partition: str, request: ChangesRequest, entries: list[Entry]) -> list[Entry]:
    found = gallery.items_in(partition, [entry.item_id for entry in entries if entry.kind == "put"])
    mine = {item_id for item_id, item in found.items() if matches(item.metadata, request.where)}
    return [entry if entry.item_id in mine else Entry(entry.cursor, entry.item_id, "delete") for entry in entries]
