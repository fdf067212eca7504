"""What a replica asks: what changed since a cursor, and the items themselves."""

from __future__ import annotations

from fastapi import APIRouter

from samespace.cloud.gallery.feed import changes_since
from samespace.cloud.gallery.routes.dependencies import ClaimOf, GalleryOf
from samespace.cloud.gallery.routes.items import item_of
from samespace.sdk.gallery.wire import API, Ids
from samespace.sdk.gallery.wire_sync import ChangePage, ChangesRequest, Items

router = APIRouter(prefix=API, tags=["replicas"])

#: Bytes of vectors of an answer, about; what has no room is asked for again.
_ROOM = 8 << 20


@router.post("/changes")
def changes(message: ChangesRequest, gallery: GalleryOf, claim: ClaimOf) -> ChangePage:
    """The latest change of each item since a cursor, in order. Ask again with the page's cursor while there is more."""
    return changes_since(gallery, claim, message)


@router.post("/items/fetch")
def fetch_items(message: Ids, gallery: GalleryOf, claim: ClaimOf) -> Items:
    """Items with their vectors, those that are there."""
    serving, partition = gallery.replicated(claim)
    room = max(1, _ROOM // (4 * gallery.members.space(claim.space_id).dim))
    found = gallery.items_in(partition, message.ids[:room])
    items = (item_of(serving, found[item_id]) for item_id in dict.fromkeys(message.ids[:room]) if item_id in found)
    return Items(model_id=serving, items=tuple(items), left=message.ids[room:])
