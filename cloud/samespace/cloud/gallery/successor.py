"""The upgrade of a space that is under way, as it is kept: one document a space, beside the registry."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import BaseModel, ConfigDict

from samespace.cloud.gallery.shelf import Shelf
from samespace.sdk.gallery.wire_upgrade import Action, UpgradeEvent
from samespace.sdk.identity import utc_now
from samespace.sdk.metrics import ScoreMap

__all__ = ["Successor", "SuccessorShelf"]

_CURRENT, _ENDED = "upgrade", "upgrade-ended"
#: Seconds for which an answer of the shelf is believed in searches; writes always ask.
_RECENT = 1.0


class Successor(BaseModel):
    """A model that is to take a space over from another one.

    Attributes:
        outcome, reasons: the verdict on the report that it was registered with.
        report_sha256: of that report.
        signer: id of the key that vouches for the record.
        merge: how hits of both models are put into one ranking, see :class:`~samespace.cloud.upgrades.UpgradeReport`.
        paused: whether the backfill is to wait.
        events: what was done, oldest first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    space_id: str
    old_model_id: str
    new_model_id: str
    outcome: Literal["pass", "fail", "inconclusive"]
    reasons: tuple[str, ...]
    report_sha256: str
    signer: str | None
    merge: dict[Literal["new", "old"], ScoreMap]
    paused: bool = False
    events: tuple[UpgradeEvent, ...] = ()

    @property
    def models(self) -> tuple[str, str]:
        """Both models."""
        return self.old_model_id, self.new_model_id

    @property
    def forced(self) -> bool:
        """Whether the new model was promoted although the verdict does not allow it, and not rolled back since."""
        moves = [event for event in self.events if event.action in ("promote", "roll back")]
        return bool(moves) and moves[-1].action == "promote" and bool(moves[-1].force)

    def other(self, model_id: str) -> str:
        """The one of the two that this one is not."""
        return self.new_model_id if model_id == self.old_model_id else self.old_model_id

    def with_event(self, action: Action, by: str, force: str = "", **changes: object) -> Successor:
        """The same after something was done."""
        event = UpgradeEvent(action=action, at=utc_now(), by=by, force=force)
        return self.model_copy(update={**changes, "events": (*self.events, event)})


class SuccessorShelf:
    """The upgrades of all spaces; safe to share between threads.

    Args:
        shelf: keeps them.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._recent: dict[str, tuple[float, Successor | None]] = {}

    def of(self, space_id: str, *, now: bool = False) -> Successor | None:
        """The upgrade that is under way.

        Args:
            now: for a write: ask the shelf, whatever was true a moment ago.
        """
        until, known = self._recent.get(space_id, (0.0, None))
        if now or time.monotonic() >= until:
            content = self._shelf.get(_CURRENT, space_id)
            known = Successor.model_validate_json(content) if content else None
            self._recent[space_id] = (time.monotonic() + _RECENT, known)
        return known

    def put(self, successor: Successor) -> None:
        """Keep it; one of the space that is there is replaced."""
        self._shelf.put(_CURRENT, successor.space_id, successor.model_dump_json().encode())
        self._recent.pop(successor.space_id, None)

    def forget(self) -> None:
        """Ask the shelf when asked next."""
        self._recent.clear()

    def end(self, successor: Successor) -> None:
        """Let the space have none; the document is kept among those that ended."""
        self._shelf.put(_ENDED, f"{successor.space_id} {successor.events[-1].at}", successor.model_dump_json().encode())
        self._shelf.put(_CURRENT, successor.space_id, b"")
        self._recent.pop(successor.space_id, None)
