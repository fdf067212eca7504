"""What a gallery service and those who upgrade it say to each other: a successor, decisions about it, and the backfill."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from samespace.sdk.gallery.wire import MAX_BATCH, Blob, Item, Name, SignedRecord, Vectors

__all__ = [
    "Action",
    "BackfillBatch",
    "Backfilled",
    "ChallengePictures",
    "Decision",
    "DecisionAction",
    "Finishing",
    "LeftItems",
    "UpgradeEvent",
    "UpgradeRequest",
    "UpgradeState",
]

DecisionAction = Literal["promote", "roll back", "pause", "resume"]
Action = Literal["register", "promote", "roll back", "pause", "resume", "finish"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ChallengePictures(_Message):
    """All challenge pictures of a space, for its operator: a successor embeds them before it may serve."""

    images: tuple[Blob, ...]


class UpgradeRequest(_Message):
    """Registers a successor, whose bundle was introduced before."""

    report: Blob = Field(description="the upgrade report, JSON; its digest is in the record")
    record: SignedRecord = Field(description="that new queries may search the old gallery, or not")
    vectors: Vectors = Field(description="the new model's embeddings of the space's challenge pictures")


class Decision(_Message):
    """What is to be done with the upgrade."""

    action: DecisionAction
    force: str = Field(default="", max_length=500, description="promote: why it goes live although it was not passed; recorded")


class Finishing(_Message):
    """How far the end of an upgrade is."""

    left: int = Field(description="vectors of the other model that are still there; at 0 the upgrade has ended")


class UpgradeEvent(_Message):
    """Something that was done."""

    action: Action
    at: str = Field(description="ISO 8601, UTC")
    by: str = Field(description="id of the API key; empty in a service without keys")
    force: str = Field(default="", description="why it was done although the verdict did not allow it")


class UpgradeState(_Message):
    """Where an upgrade stands, for the asking tenant."""

    space_id: str
    old_model_id: str
    new_model_id: str
    serving_model_id: str
    outcome: Literal["pass", "fail", "inconclusive"]
    reasons: tuple[str, ...]
    paused: bool
    items: int = Field(description="of the gallery")
    embedded: int = Field(description="of these by the new model")
    only_new: int = Field(description="by the new model alone: added while it served")
    events: tuple[UpgradeEvent, ...]

    @property
    def promoted(self) -> bool:
        """Whether the new model serves."""
        return self.serving_model_id == self.new_model_id


class LeftItems(_Message):
    """Items that the asking model has not embedded yet, with the other model's vectors."""

    items: tuple[Item, ...]
    after: str | None = Field(description="ask again with it; null: no more")


class BackfillBatch(_Message):
    """Vectors of items that another model embedded. An item that was replaced meanwhile is left for later."""

    ids: tuple[Name, ...] = Field(max_length=MAX_BATCH)
    vectors: Vectors
    seen: tuple[str, ...] = Field(
        max_length=MAX_BATCH, description="SHA-256 of the other model's vector of each, float32 bytes"
    )


class Backfilled(_Message):
    """What became of a batch."""

    kept: tuple[str, ...] = Field(description="on disk now")
    paused: bool = Field(default=False, description="nothing was kept; send it again when the backfill goes on")
