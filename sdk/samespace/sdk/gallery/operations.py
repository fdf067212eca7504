"""What one asks of a gallery, once for both clients. Pure: see :mod:`~samespace.sdk.gallery.steps`. What each does is said at
:class:`~samespace.sdk.gallery.client.GalleryClient`.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from pydantic import ValidationError

from samespace.sdk.errors import ConfigError
from samespace.sdk.gallery.connection import first_complaint
from samespace.sdk.gallery.session import Content, NewItem, Session, taken
from samespace.sdk.gallery.steps import Steps
from samespace.sdk.gallery.wire import (
    API,
    MAX_BATCH,
    Added,
    Ids,
    Item,
    ItemBatch,
    MissingItemError,
    Place,
    SearchHit,
    SearchRequest,
    SearchResult,
    Vectors,
)
from samespace.sdk.gallery.wire_admin import Explained, Explanation
from samespace.sdk.gallery.wire_search import SearchByIds
from samespace.sdk.gallery.wire_sync import ChangePage, ChangesRequest, Items

__all__ = [
    "Filter",
    "Page",
    "add",
    "as_wire",
    "changes",
    "checked_id",
    "checked_k",
    "delete",
    "explain",
    "fetch",
    "get",
    "item_batch",
    "known",
    "new_key",
    "search",
    "search_ids",
    "search_page",
]

_Value = str | int | float | bool | None
#: What an item's metadata must say to be found: a value for a name, or several of which one must be there.
Filter = Mapping[str, _Value | Sequence[_Value]]


@dataclass(frozen=True)
class Page:
    """Some hits of a search, and the ``cursor`` of the next page; None after the last."""

    hits: list[SearchHit]
    cursor: str | None


def search(
    session: Session, queries: Iterable[Content], k: int, *, exact: bool = False, where: Filter | None = None
) -> Steps[list[list[SearchHit]]]:
    found: list[list[SearchHit]] = []
    remaining = iter(queries)
    while batch := (yield from taken(remaining)):
        request = yield from _request(session, batch, k, exact=exact, where=where)
        result = yield from session.call("POST", f"{API}/search", SearchResult, request)
        found.extend(list(hits) for hits in result.hits)
    return found


def search_page(
    session: Session, query: Content, size: int, cursor: str | None, *, exact: bool = False, where: Filter | None = None
) -> Steps[Page]:
    request = yield from _request(session, [query], size, exact=exact, where=where, after=_place(cursor))
    result = yield from session.call("POST", f"{API}/search", SearchResult, request)
    (hits,) = result.hits
    return Page(list(hits), _cursor(hits[-1]) if len(hits) == size else None)


def search_ids(session: Session, ids: Sequence[str], k: int, *, exact: bool = False) -> Steps[list[list[SearchHit]]]:
    message = _checked(SearchByIds, ids=tuple(ids), k=checked_k(k), exact=exact)
    result = yield from session.call("POST", f"{API}/search/ids", SearchResult, message)
    return [list(hits) for hits in result.hits]


def explain(session: Session, query: Content, k: int) -> Steps[list[Explanation]]:
    request = yield from _request(session, [query], k)
    result = yield from session.call("POST", f"{API}/explain", Explained, request)
    return list(result.hits[0])


def add(
    session: Session,
    items: Iterable[NewItem],
    *,
    batch: int = MAX_BATCH,
    progress: Callable[[int], None] = lambda acknowledged: None,
) -> Steps[tuple[str, ...]]:
    if not 1 <= batch <= MAX_BATCH:
        raise ConfigError(f"batch={batch}: a message takes 1 to {MAX_BATCH} items")
    acknowledged: list[str] = []
    remaining = iter(items)
    while part := (yield from taken(remaining, batch)):
        message = yield from item_batch(session, part)
        added = yield from session.call("POST", f"{API}/items", Added, message, once=new_key())
        acknowledged.extend(added.acknowledged)
        progress(len(acknowledged))
    return tuple(acknowledged)


def item_batch(session: Session, items: Sequence[NewItem]) -> Steps[ItemBatch]:
    """The message that adds items; embeds what is not embedded yet.

    Raises:
        ConfigError: an id or metadata that no gallery takes.
    """
    vectors = yield from session.vectors([item.content for item in items])
    return _checked(
        ItemBatch,
        "an item cannot be added",
        space_id=session.embedder.space_id,
        model_id=session.embedder.model_id,
        ids=tuple(item.item_id for item in items),
        metadata=tuple(dict(item.metadata) for item in items),
        vectors=Vectors.of(vectors),
    )


def known(session: Session, ids: Iterable[str]) -> Steps[set[str]]:
    found: set[str] = set()
    remaining = iter(ids)
    while batch := (yield from taken(remaining)):
        answer = yield from session.call("POST", f"{API}/items/known", Ids, Ids(ids=tuple(batch)))
        found.update(answer.ids)
    return found


def get(session: Session, item_id: str) -> Steps[Item | None]:
    try:
        return (yield from session.call("GET", f"{API}/items?item_id={quote(item_id, safe='')}", Item))
    except MissingItemError:
        return None


def fetch(session: Session, ids: Sequence[str]) -> Steps[tuple[str, list[Item]]]:
    """The serving model, and those of the items that are there."""
    found: list[Item] = []
    left, model_id = tuple(ids), ""
    while left:
        asked, later = left[:MAX_BATCH], left[MAX_BATCH:]
        page = yield from session.call("POST", f"{API}/items/fetch", Items, Ids(ids=asked))
        found.extend(page.items)
        left, model_id = page.left + later, page.model_id
    return model_id, found


def delete(session: Session, item_id: str, *, once: str | None = None) -> Steps[bool]:
    try:
        path = f"{API}/items?item_id={quote(item_id, safe='')}"
        yield from session.call("DELETE", path, Ids, once=once or new_key())
    except MissingItemError:
        return False
    return True


def changes(
    session: Session, after: int, *, limit: int = MAX_BATCH, where: Filter | None = None, deletions: bool = True
) -> Steps[ChangePage]:
    message = _checked(ChangesRequest, after=after, limit=limit, where=as_wire(where), deletions=deletions)
    return (yield from session.call("POST", f"{API}/changes", ChangePage, message))


def checked_id(item_id: str) -> str:
    """``item_id``, which a gallery may have.

    Raises:
        ConfigError: no gallery takes such an id.
    """
    return _checked(Ids, "this cannot be an item's id", ids=(item_id,)).ids[0]


def new_key() -> str:
    """An idempotency key that nobody else has."""
    return secrets.token_hex(16)


def _request(
    session: Session,
    queries: Sequence[Content],
    k: int,
    *,
    exact: bool = False,
    where: Filter | None = None,
    after: Place | None = None,
) -> Steps[SearchRequest]:
    vectors = yield from session.vectors(queries)
    return _checked(
        SearchRequest,
        "this cannot be searched for",
        space_id=session.embedder.space_id,
        model_id=session.embedder.model_id,
        vectors=Vectors.of(vectors),
        k=checked_k(k),
        exact=exact,
        where=as_wire(where),
        after=after,
    )


def _checked(kind: Any, complaint: str = "the gallery takes no such request", **fields: Any) -> Any:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise ConfigError(f"{complaint}: {first_complaint(error)}") from None


def checked_k(k: int) -> int:
    """``k``, of which a search may have so many hits."""
    if not 1 <= k <= 1000:
        raise ConfigError(f"k={k}: ask for 1 to 1000 hits")
    return k


def as_wire(where: Filter | None) -> dict[str, Any]:
    """A filter as it travels.

    Raises:
        ConfigError: no gallery takes it.
    """
    plain = {name: _plain(value) for name, value in (where or {}).items()}
    return _checked(ChangesRequest, "this cannot be searched for", where=plain).where


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return tuple(sorted(value, key=repr))
    return tuple(value) if isinstance(value, list | tuple) else value


def _cursor(hit: SearchHit) -> str:
    return base64.urlsafe_b64encode(json.dumps([hit.score, hit.item_id]).encode()).decode()


def _place(cursor: str | None) -> Place | None:
    if cursor is None:
        return None
    try:
        score, item_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return Place(score=score, item_id=item_id)
    except (binascii.Error, ValueError, TypeError):
        raise ConfigError(f"{cursor!r} is no cursor of a search; take the one that the page before had") from None
