"""Messages of the service that hold items or hits: search by id, export, the records of a pair."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from samespace.sdk.gallery.wire import Item, Name
from samespace.sdk.identity import CompatibilityRecord

__all__ = ["ExportPage", "RecordAnswer", "SearchByIds"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SearchByIds(_Message):
    """What is near to items that the gallery holds; their own vectors are the queries."""

    ids: tuple[Name, ...] = Field(max_length=100)
    k: int = Field(default=10, ge=1, le=1000)
    exact: bool = False


class ExportPage(_Message):
    """Some items, by id. ``after`` asks for the next page; null when this was the last."""

    model_id: str
    items: tuple[Item, ...]
    after: str | None


class RecordAnswer(_Message):
    """The record that counts for a pair of models, and the id of the key that vouches for it."""

    record: CompatibilityRecord | None
    signer: str | None
