"""Requests that may be sent again: with an idempotency key they are done once and answered alike each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Header
from pydantic import BaseModel

from samespace.cloud.gallery.journal import Journal
from samespace.cloud.gallery.membership import Claim
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import canonical_json, digest

__all__ = ["SECONDS", "OnceKey", "once"]

T = TypeVar("T", bound=BaseModel)
#: How long an answer is remembered: longer than a phone is offline.
SECONDS = 30 * 24 * 3600.0

#: The header; whatever the client makes up, the same for each repetition of one request.
OnceKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=8, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$")]


def once(journal: Journal, claim: Claim, key: str | None, request: BaseModel, kind: type[T], do: Callable[[], T]) -> T:
    """What ``do`` answers; or, if a request with this key was done before, what it was answered.

    What ``do`` writes is one transaction with the memory of it. An error is not remembered, for nothing was done.

    Args:
        claim: whose request it is: a key is its tenant's, for one space.
        key: without one, ``do`` is simply done.
        kind: of the answer.
        request: the same key with another request is a mistake.

    Raises:
        ConfigError: that mistake.
    """
    if key is None:
        return do()
    place = digest(canonical_json({"tenant": claim.tenant, "space_id": claim.space_id, "key": key}))
    asked = digest(f"{type(request).__name__} {claim.model_id} {request.model_dump_json()}".encode())
    with journal.atomic():
        before = journal.recall(place, asked, SECONDS)
        if before is None:
            answer = do()
            journal.remember(place, answer.model_dump_json())
            return answer
    if before.digest != asked:
        raise ConfigError(f"the idempotency key {key!r} was used for another request; make a new one for each request")
    return kind.model_validate_json(before.answer)
