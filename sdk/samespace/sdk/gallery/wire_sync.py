"""Messages that keep a replica up to date: what changed since a cursor, and the items themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from samespace.sdk.gallery.wire import MAX_BATCH, Item, Name, Where

__all__ = ["Change", "ChangePage", "ChangesRequest", "Items"]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ChangesRequest(_Message):
    """Asks what changed since a cursor. 0 is before everything."""

    after: int = Field(default=0, ge=0, le=2**63 - 1)
    limit: int = Field(default=MAX_BATCH, ge=1, le=4096)
    where: Where = Field(default={}, description="only items whose metadata have these values; others count as deleted")
    deletions: bool = Field(default=True, description="false for a replica that is empty: it has nothing to forget")


class Change(_Message):
    """The latest change of an item; what it was before is not told."""

    cursor: int
    item_id: str
    kind: Literal["put", "delete"]


class ChangePage(_Message):
    """Changes in the order in which they were made, at most one of each item.

    A client whose ``feed`` or ``model_id`` is another one begins again at 0: the store was replaced, or another model serves
    and all items were made anew.
    """

    feed: str = Field(description="which feed the cursors are of; a store that was replaced has another")
    model_id: str = Field(description="the serving model: whose items these are")
    changes: tuple[Change, ...]
    cursor: int = Field(description="to go on from")
    more: bool = Field(description="whether there is more after this page")


class Items(_Message):
    """Those of the items that are there, as they are now; ask again for those that had no room."""

    model_id: str
    items: tuple[Item, ...]
    left: tuple[Name, ...] = Field(default=(), description="asked for, and not looked at")
