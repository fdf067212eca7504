"""Searching: by vectors, by items that are there, and why a hit is one."""

from __future__ import annotations

import asyncio
import json

import numpy as np
from fastapi import APIRouter, Request, Response

from samespace.cloud.gallery.explain import explained, pair_info
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.base import Hit
from samespace.cloud.gallery.routes.dependencies import (
    ClaimOf,
    GalleryOf,
    MetricsOf,
    bucket_of,
    busy,
    claimed,
    message_of,
)
from samespace.cloud.gallery.routes.items import missing
from samespace.sdk.gallery.wire import API, SearchRequest, SearchResult
from samespace.sdk.gallery.wire_admin import Explained
from samespace.sdk.gallery.wire_search import SearchByIds

router = APIRouter(prefix=API, tags=["search"])


@router.post("/search", response_model=SearchResult, openapi_extra=busy(SearchRequest))
async def search(request: Request) -> Response:
    """The nearest items for each query."""
    claim, message = claimed(request), await message_of(request, SearchRequest)
    queries = message.vectors.array()
    after = None if message.after is None else (message.after.score, message.after.item_id)
    gallery: Gallery = request.app.state.gallery

    def find() -> Response:
        answer = gallery.search(
            claim, message.space_id, message.model_id, queries, message.k, exact=message.exact, where=message.where, after=after
        )
        request.app.state.metrics.searched(len(queries))
        request.app.state.drift.observe(bucket_of(claim), queries)
        return _answer(*answer)

    return await asyncio.get_running_loop().run_in_executor(None, find)


@router.post("/search/ids", response_model=SearchResult)
def search_by_ids(message: SearchByIds, gallery: GalleryOf, claim: ClaimOf, metrics: MetricsOf) -> Response:
    """The nearest items for each of these items; itself first."""
    model_id, found = gallery.search_by_ids(claim, message.ids, message.k, exact=message.exact)
    if isinstance(found, str):
        raise missing(found)
    metrics.searched(len(message.ids))
    return _answer(model_id, found)


@router.post("/explain")
def explain(message: SearchRequest, gallery: GalleryOf, claim: ClaimOf) -> Explained:
    """Search, and say of each hit why it is one: how it scores beside the rest, and what the two models' record says."""
    queries = message.vectors.array()
    serving, found = gallery.search(claim, message.space_id, message.model_id, queries, message.k, exact=message.exact)
    pair = pair_info(claim, serving, gallery.members.registered_record(claim, serving))
    items = gallery.stored(claim, {hit.item_id for hits in found for hit in hits})
    sample = gallery.sample(claim)
    rows = sample if sample is not None else np.empty((0, queries.shape[1]), np.float32)
    made = (explained(query, hits, items, rows, pair) for query, hits in zip(queries, found, strict=True))
    return Explained(pair=pair, sample=len(rows), hits=tuple(made))


def _answer(model_id: str, found: list[list[Hit]]) -> Response:
    """A :class:`SearchResult`, written as it is: what is in the gallery was validated when it came."""
    hits = [[{"item_id": hit.item_id, "score": hit.score, "metadata": hit.metadata} for hit in row] for row in found]
    return Response(json.dumps({"model_id": model_id, "hits": hits}, allow_nan=False), media_type="application/json")
