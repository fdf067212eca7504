"""Items of a tenant's gallery: add, get, delete, export."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from samespace.cloud.gallery.indexes.base import StoredItem
from samespace.cloud.gallery.once import OnceKey, once
from samespace.cloud.gallery.routes.dependencies import AdminOf, ClaimOf, GalleryOf, MetricsOf, Text, WriterClaimOf
from samespace.sdk.gallery.wire import API, Added, Ids, Item, ItemBatch, MissingItemError, Vectors
from samespace.sdk.gallery.wire_search import ExportPage

router = APIRouter(prefix=API, tags=["items"])


@router.post("/items")
def add_items(message: ItemBatch, gallery: GalleryOf, claim: WriterClaimOf, metrics: MetricsOf, key: OnceKey = None) -> Added:
    """Keep vectors, all of the message or none; they are on disk when this answers. With an idempotency key, what is sent
    again is answered again and not done again.
    """

    def do() -> Added:
        ids = gallery.add(claim, message.space_id, message.model_id, message.ids, message.vectors.array(), message.metadata)
        metrics.added(len(ids))
        return Added(acknowledged=ids)

    return once(gallery.journal, claim, key, message, Added, do)


@router.post("/items/known")
def known_items(message: Ids, gallery: GalleryOf, claim: ClaimOf) -> Ids:
    """Which of the ids are there."""
    known = gallery.known(claim, message.ids)
    return Ids(ids=tuple(item_id for item_id in message.ids if item_id in known))


@router.get("/items")
def get_item(item_id: Text, gallery: GalleryOf, claim: ClaimOf) -> Item:
    """One item with its vector."""
    found = gallery.get(claim, item_id)
    if found is None:
        raise missing(item_id)
    return item_of(*found)


@router.delete("/items")
def delete_item(item_id: Text, gallery: GalleryOf, claim: WriterClaimOf, key: OnceKey = None) -> Ids:
    """Forget one item. With an idempotency key, what is sent again is answered again and not done again."""

    def do() -> Ids:
        return Ids(ids=(item_id,) if gallery.delete(claim, [item_id]) else ())

    gone = once(gallery.journal, claim, key, Ids(ids=(item_id,)), Ids, do)
    if not gone.ids:
        raise missing(item_id)
    return gone


@router.get("/items/export")
def export_items(
    gallery: GalleryOf,
    claim: ClaimOf,
    caller: AdminOf,
    after: Annotated[str, Query(max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
    limit: Annotated[int, Query(ge=1, le=1024)] = 256,
) -> ExportPage:
    """Items with their vectors, by id; ask again with ``after`` until it is null. What is added meanwhile may be missed."""
    items = gallery.scan(claim, after, limit)
    more = items[-1][1].item_id if len(items) == limit else None
    serving = gallery.members.serving(claim.space_id)
    return ExportPage(model_id=serving, items=tuple(item_of(*each) for each in items), after=more)


def missing(item_id: str) -> MissingItemError:
    """What is said of an item that is not there."""
    return MissingItemError(f"no item {item_id!r} in this gallery; add it first, or search for what there is")


def item_of(model_id: str, item: StoredItem) -> Item:
    """An item as it travels."""
    return Item(item_id=item.item_id, model_id=model_id, vector=Vectors.of(item.vector[None]), metadata=dict(item.metadata))
