"""Vectors in Milvus: a server or cluster at a URL, or milvus-lite in a file. Each model has a collection of its own.

Ids are stored as the hexadecimal digits of their UTF-8, which sort as the ids do and need no escaping in an expression;
facts of metadata are stored as digests beside them, for the same reason, and because Milvus' own comparison of JSON values
takes true for 1.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.indexes.base import Filter, Hit, Metadata, Place, StoredItem, comes_after
from samespace.sdk.errors import ConfigError, GalleryError, GalleryUnavailableError, MissingExtraError
from samespace.sdk.gallery.ranking import cosine_scores, matches, values_of

__all__ = ["MilvusIndex"]

_Answer = TypeVar("_Answer")

_LONGEST = 32_768
#: Milvus answers with no more rows at once.
_MOST_ROWS = 16_384
#: Ids of one expression, rows of one page.
_IDS_AT_ONCE, _PAGE = 1_000, 2_000
#: A few more rows than asked for are ranked again in float64, so that all indexes agree.
_SPARE = 16
#: Bytes of a message that Milvus takes, with some room.
_MESSAGE = 48 << 20
#: Bytes of an id as hexadecimal digits.
_ID_LENGTH = 8_192
#: How often, and after how many seconds at first, what failed is tried again: right after a crash a server says that it
#: is there before all of it is.
_ATTEMPTS, _PAUSE = 6, 0.25
#: Longer than any answer should take; a server that says nothing must not hold up a request for minutes.
_SECONDS = 30.0
_FIELDS = ["vector", "metadata"]


class MilvusIndex:
    """Implements :class:`~samespace.cloud.gallery.indexes.base.VectorIndex` with Milvus 2.3 or later.

    Exact searches and pages far behind read all vectors of the model; only ordinary searches are Milvus' own.

    Args:
        url: ``http://user:password@host:19530``, or the path of a file that ends in ``.db`` for milvus-lite.

    Raises:
        ConfigError: no URL. MissingExtraError: pymilvus is not installed.
        GalleryUnavailableError: no server answers there.
    """

    def __init__(self, url: str) -> None:
        if not (url.startswith(("http://", "https://")) or url.endswith(".db")):
            raise ConfigError("the index 'milvus' needs --index-url: http://HOST:19530, or FILE.db for milvus-lite")
        try:
            import pymilvus  # pyright: ignore[reportMissingImports] - an extra
        except ModuleNotFoundError:
            raise MissingExtraError("milvus", "an index in Milvus") from None
        self._lite = not url.startswith("http")
        #: For messages, without a password.
        self._place = url.rsplit("@", 1)[-1]
        self._pymilvus: Any = pymilvus
        self._client: Any = self._called(lambda: pymilvus.MilvusClient(uri=url, timeout=_SECONDS), attempts=1)

    def describe(self, model_id: str) -> str:
        """Which index this is."""
        return "milvus-lite" if self._lite else "milvus hnsw"

    def prepare(self, model_id: str, dim: int) -> None:
        if dim > _LONGEST:
            raise GalleryError(f"model {model_id}: Milvus stores vectors of up to {_LONGEST} dimensions, not {dim}")
        name = _collection(model_id)
        if not self._called(lambda: self._client.has_collection(name)):
            self._called(lambda: self._make(name, dim))
        self._called(lambda: self._client.load_collection(name))

    def upsert(self, model_id: str, items: Sequence[StoredItem]) -> None:
        latest = {item.item_id: item for item in items}
        rows = [
            {"id": _key(item.item_id), "vector": item.vector.tolist(), "metadata": _document(item)} for item in latest.values()
        ]
        if not rows:
            return
        size = sum(4 * len(row["vector"]) + len(row["id"]) + len(json.dumps(row["metadata"])) for row in rows)
        longest = max(latest, key=lambda item_id: len(item_id.encode()))
        if size > _MESSAGE or len(_key(longest)) > _ID_LENGTH:
            raise GalleryError(
                f"{len(rows)} items of {size >> 20} MiB, the longest id {len(longest.encode())} bytes: Milvus takes "
                f"{_MESSAGE >> 20} MiB at once and ids of {_ID_LENGTH // 2} bytes; send smaller batches"
            )
        self._called(lambda: self._client.upsert(_collection(model_id), rows))

    def search(
        self,
        model_id: str,
        queries: npt.NDArray[np.float32],
        k: int,
        *,
        exact: bool = False,
        where: Filter | None = None,
        after: Place | None = None,
        without: str | None = None,
    ) -> list[list[Hit]]:
        where = where or {}
        if any(not values_of(wanted) for wanted in where.values()):
            return [[] for _ in queries]  # one of no values: nothing is, and Milvus' expressions know no empty lists
        if exact:
            return self._exactly(model_id, queries, k, where, after, without)
        found = []
        for row, query in enumerate(queries):
            hits = self._approximately(model_id, query, k, where, after, without)
            if hits is None:
                (hits,) = self._exactly(model_id, queries[row : row + 1], k, where, after, without)
            found.append(hits)
        return found

    def get(self, model_id: str, ids: Sequence[str]) -> dict[str, StoredItem]:
        return {item.item_id: item for item in map(_item, self._rows(model_id, ids, _FIELDS))}

    def known(self, model_id: str, ids: Sequence[str]) -> set[str]:
        return {_id(row["id"]) for row in self._rows(model_id, ids, ["id"])}

    def delete(self, model_id: str, ids: Sequence[str]) -> int:
        there = sorted(self.known(model_id, ids))
        for start in range(0, len(there), _IDS_AT_ONCE):
            keys = [_key(item_id) for item_id in there[start : start + _IDS_AT_ONCE]]
            self._called(lambda keys=keys: self._client.delete(_collection(model_id), filter=f"id in {json.dumps(keys)}"))
        return len(there)

    def scan(self, model_id: str, after: str, limit: int) -> list[StoredItem]:
        found: list[StoredItem] = []
        while len(found) < limit:
            size = min(_PAGE, limit - len(found))
            page = self._page(model_id, found[-1].item_id if found else after, size)
            found += page
            if len(page) < size:
                break
        return found

    def count(self, model_id: str, *, without: str | None = None) -> int:
        if without is not None:
            return sum(len(self._other_than(without, page)) for page in self._pages(model_id))
        rows = self._query(model_id, 'id != ""', ["count(*)"], None)
        return int(rows[0]["count(*)"])

    def snapshot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._client.close()

    def _make(self, name: str, dim: int) -> None:
        types = self._pymilvus.DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=_ID_LENGTH)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=dim)
        schema.add_field("metadata", types.JSON)
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 200})
        try:
            # What one process has written, every process finds.
            self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
        except self._pymilvus.MilvusException:
            # Two services that start at once both make it; one is first.
            if not self._client.has_collection(name):
                raise

    def _approximately(
        self,
        model_id: str,
        query: npt.NDArray[np.float32],
        k: int,
        where: Filter,
        after: Place | None,
        without: str | None,
    ) -> list[Hit] | None:
        """None where an approximate search may have given up too early."""
        limit = min(_MOST_ROWS, k + _SPARE)
        while True:
            rows = self._called(
                lambda limit=limit: self._client.search(
                    _collection(model_id),
                    data=[query.tolist()],
                    anns_field="vector",
                    filter=_expression(where),
                    limit=limit,
                    search_params={"metric_type": "IP", "params": {"ef": min(32_768, max(128, 2 * limit))}},
                    output_fields=["id", *_FIELDS],
                )
            )[0]
            items = self._other_than(without, [_item(row["entity"] | {"id": row["id"]}) for row in rows])
            hits = [hit for hit in _hits(query, items) if after is None or comes_after(hit, after)]
            hits = [hit for hit in hits if matches(hit.metadata, where)]
            if len(hits) >= k or (not where and after is None and without is None):
                return sorted(hits, key=_place)[:k]
            if len(rows) < limit or limit == _MOST_ROWS:
                return None
            limit = min(_MOST_ROWS, 4 * limit)

    def _exactly(
        self,
        model_id: str,
        queries: npt.NDArray[np.float32],
        k: int,
        where: Filter,
        after: Place | None,
        without: str | None,
    ) -> list[list[Hit]]:
        best: list[list[Hit]] = [[] for _ in queries]
        for page in self._pages(model_id):
            items = self._other_than(without, [item for item in page if matches(item.metadata, where)])
            for row, query in enumerate(queries):
                hits = (hit for hit in _hits(query, items) if after is None or comes_after(hit, after))
                best[row] = heapq.nsmallest(k, [*best[row], *hits], key=_place)
        return best

    def _other_than(self, without: str | None, items: list[StoredItem]) -> list[StoredItem]:
        """Those that the other model has not: Milvus joins no collections."""
        if without is None or not items:
            return items
        theirs = self.known(without, [item.item_id for item in items])
        return [item for item in items if item.item_id not in theirs]

    def _pages(self, model_id: str) -> Iterator[list[StoredItem]]:
        if self._lite:
            keys = self._keys(model_id, "")
            for start in range(0, len(keys), _PAGE):
                yield self._of_keys(model_id, keys[start : start + _PAGE])
            return
        after = ""
        while page := self._page(model_id, after, _PAGE):
            yield page
            after = page[-1].item_id

    def _page(self, model_id: str, after: str, limit: int) -> list[StoredItem]:
        if self._lite:
            return self._of_keys(model_id, self._keys(model_id, after)[:limit])
        # A server answers a limited query with the smallest keys; pymilvus' own iterator relies on it, too.
        rows = self._query(model_id, f'id > "{_key(after)}"', _FIELDS, limit)
        return sorted(map(_item, rows), key=lambda item: item.item_id)

    def _keys(self, model_id: str, after: str) -> list[str]:
        """All of them after an id, in order: milvus-lite answers a limited query with any."""
        return sorted(row["id"] for row in self._query(model_id, f'id > "{_key(after)}"', ["id"], None))

    def _of_keys(self, model_id: str, keys: Sequence[str]) -> list[StoredItem]:
        items = map(_item, self._rows(model_id, [_id(key) for key in keys], _FIELDS))
        return sorted(items, key=lambda item: item.item_id)

    def _rows(self, model_id: str, ids: Sequence[str], fields: list[str]) -> Iterator[dict[str, Any]]:
        wanted = [_key(item_id) for item_id in dict.fromkeys(ids)]
        for start in range(0, len(wanted), _IDS_AT_ONCE):
            some = wanted[start : start + _IDS_AT_ONCE]
            yield from self._query(model_id, f"id in {json.dumps(some)}", fields, len(some))

    def _query(self, model_id: str, expression: str, fields: list[str], limit: int | None) -> list[dict[str, Any]]:
        fields = fields if fields == ["count(*)"] else list(dict.fromkeys(["id", *fields]))
        options = {} if limit is None else {"limit": limit}
        return self._called(
            lambda: self._client.query(_collection(model_id), filter=expression, output_fields=fields, **options)
        )

    def _called(self, call: Callable[[], _Answer], attempts: int = _ATTEMPTS) -> _Answer:
        """What ``call`` answers; every call may be repeated, and is, when the server was not ready."""
        for attempt in range(attempts):
            try:
                return call()
            except self._pymilvus.MilvusException as error:
                passing = _passing(error)
                if not passing or attempt == attempts - 1:
                    kind = GalleryUnavailableError if passing else GalleryError
                    raise kind(
                        f"Milvus at {self._place}: {' '.join(str(error.message).split())}; start that server, or correct "
                        "--index-url"
                    ) from error
                time.sleep(_PAUSE * 2**attempt)
        raise AssertionError("unreachable")


def _passing(error: Any) -> bool:
    """Whether it may go away by itself: no connection, or a part of the server is not there yet."""
    words = str(error.message).lower()
    signs = (
        "unavailable",
        "connect",
        "not ready",
        "not loaded",
        "channel",
        "timeout",
        "timed out",
        "service not",
        "node",
        "recover",
    )
    return any(sign in words for sign in signs)


def _collection(model_id: str) -> str:
    name = "samespace_" + model_id.replace("-", "_")
    if not name.isascii() or not name.replace("_", "").isalnum():
        raise GalleryError(f"{model_id!r} is no model id; it is 'm-' and 32 hexadecimal digits")
    return name


def _key(item_id: str) -> str:
    return item_id.encode().hex()


def _id(key: str) -> str:
    return bytes.fromhex(key).decode()


def _document(item: StoredItem) -> dict[str, Any]:
    metadata = dict(item.metadata)
    return {"facts": [_fact(name, value) for name, value in metadata.items()], "told": json.dumps(metadata)}


def _fact(name: str, value: object) -> str:
    """A digest of a name and its value, equal where JSON says that the values are."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return hashlib.blake2b(json.dumps([name, value]).encode(), digest_size=12).hexdigest()


def _expression(where: Filter) -> str:
    conditions = []
    for name, wanted in where.items():
        facts = json.dumps([_fact(name, value) for value in values_of(wanted)])
        conditions.append(f'json_contains_any(metadata["facts"], {facts})')
    return " and ".join(conditions)


def _item(row: Mapping[str, Any]) -> StoredItem:
    document = row["metadata"]
    document = json.loads(document) if isinstance(document, str | bytes) else document
    told: Metadata = json.loads(document["told"])
    return StoredItem(_id(row["id"]), np.asarray(row["vector"], np.float32), told)


def _hits(query: npt.NDArray[np.float32], items: Sequence[StoredItem]) -> list[Hit]:
    if not items:
        return []
    scores = cosine_scores(query, np.stack([item.vector for item in items]))
    return [Hit(item.item_id, float(score), item.metadata) for item, score in zip(items, scores, strict=True)]


def _place(hit: Hit) -> tuple[float, str]:
    return -hit.score, hit.item_id
