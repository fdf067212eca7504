"""Upgrades of a space: a successor is registered, promoted, rolled back, finished; and items are embedded by it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from samespace.cloud.gallery.routes.dependencies import (
    GalleryOf,
    OperatorOf,
    PathText,
    ReaderOf,
    SettingsOf,
    WriterClaimOf,
)
from samespace.cloud.gallery.routes.items import item_of
from samespace.cloud.gallery.signatures import verified_record
from samespace.sdk.errors import SpaceMismatchError
from samespace.sdk.gallery.wire import API
from samespace.sdk.gallery.wire_upgrade import (
    BackfillBatch,
    Backfilled,
    ChallengePictures,
    Decision,
    Finishing,
    LeftItems,
    UpgradeRequest,
    UpgradeState,
)

router = APIRouter(prefix=API, tags=["upgrades"])


@router.get("/spaces/{space_id}/challenges")
def challenge_pictures(space_id: PathText, gallery: GalleryOf, caller: OperatorOf) -> ChallengePictures:
    """The pictures that devices of a space are challenged with: a successor embeds them."""
    space = gallery.members.space(space_id)
    challenges = gallery.registry.challenges(gallery.members.serving(space.space_id))
    return ChallengePictures(images=tuple(challenge.image for challenge in challenges))


@router.post("/spaces/{space_id}/upgrade")
def register_upgrade(
    space_id: PathText, message: UpgradeRequest, gallery: GalleryOf, settings: SettingsOf, caller: OperatorOf
) -> UpgradeState:
    """Let a member of the space be the serving model's successor. Its report is judged here, by the bars that its signed record
    names.
    """
    signer = verified_record(message.record, settings.trust, allow_unsigned=settings.allow_unsigned)
    record = message.record.record
    if record.space_id != space_id:
        raise SpaceMismatchError(
            f"the record is about the space {record.space_id}, sent for {space_id}; send it to its own space"
        )
    gallery.upgrades.register(message.report, record, signer, message.vectors.array(), caller.key_id)
    return gallery.upgrades.state(record.space_id, caller.tenant)


@router.get("/spaces/{space_id}/upgrade")
def upgrade_state(space_id: PathText, gallery: GalleryOf, caller: ReaderOf) -> UpgradeState:
    """Where the upgrade of the space stands, for the asking tenant's items."""
    return gallery.upgrades.state(space_id, caller.tenant)


@router.post("/spaces/{space_id}/upgrade/decision")
def decide(space_id: PathText, message: Decision, gallery: GalleryOf, caller: OperatorOf) -> UpgradeState:
    """Promote, roll back, pause or resume; each is done at once, for all tenants."""
    match message.action:
        case "promote":
            gallery.upgrades.promote(space_id, caller.key_id, message.force)
        case "roll back":
            gallery.upgrades.roll_back(space_id, caller.key_id)
        case "pause" | "resume" as wanted:
            gallery.upgrades.pause(space_id, wanted == "pause", caller.key_id)
    return gallery.upgrades.state(space_id, caller.tenant)


@router.post("/spaces/{space_id}/upgrade/finish")
def finish(space_id: PathText, gallery: GalleryOf, settings: SettingsOf, caller: OperatorOf) -> Finishing:
    """Forget a part of the vectors of the model that does not serve; ask again until none is left."""
    tenants = {info.tenant for info in settings.keys.list()} if settings.keys else set()
    return Finishing(left=gallery.upgrades.finish(space_id, tenants, caller.key_id))


@router.get("/backfill")
def left_items(
    gallery: GalleryOf,
    claim: WriterClaimOf,
    after: Annotated[str, Query(max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
    limit: Annotated[int, Query(ge=1, le=1024)] = 256,
    order: Literal["id", "oldest"] = "id",
) -> LeftItems:
    """Items that the asking model has not embedded yet; ask again with ``after`` until it is null."""
    model_id, items, more = gallery.left(claim, after, limit, oldest=order == "oldest")
    return LeftItems(items=tuple(item_of(model_id, item) for item in items), after=more)


@router.post("/backfill")
def backfill(message: BackfillBatch, gallery: GalleryOf, claim: WriterClaimOf) -> Backfilled:
    """Keep what the asking model makes of items that the other one embedded. It may be sent again."""
    successor = gallery.members.successor(claim.space_id, now=True)
    if successor is not None and successor.paused:
        return Backfilled(kept=(), paused=True)
    return Backfilled(kept=gallery.backfill(claim, message.ids, message.vectors.array(), message.seen))
