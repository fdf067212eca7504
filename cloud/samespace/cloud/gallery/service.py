"""The gallery over HTTP: FastAPI, JSON, problems with stable codes, Prometheus metrics, OpenAPI at ``/docs``.

Who may do what: registering needs a signature that the service trusts; everything about vectors needs the token of a
passed handshake; health and metrics are open. Put TLS and a limit on request sizes before it (any reverse proxy).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from samespace.cloud.gallery.evidence import verified_evidence
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.membership import Claim, Introduction
from samespace.cloud.gallery.metrics import Metrics
from samespace.cloud.gallery.signatures import verified_record
from samespace.sdk.errors import GalleryError, SamespaceError
from samespace.sdk.gallery.wire import (
    API,
    Added,
    Admission,
    BundleProof,
    ChallengeAnswer,
    ChallengeSet,
    FoundSpace,
    GalleryHealth,
    HandshakeRequest,
    Ids,
    Introduced,
    Item,
    ItemBatch,
    MissingItemError,
    Problem,
    SearchHit,
    SearchRequest,
    SearchResult,
    SignedRecord,
    SpaceState,
    UnknownTokenError,
    Vectors,
    code_of,
)
from samespace.sdk.identity import CompatibilityRecord
from samespace.sdk.signing import TrustStore

__all__ = ["ServiceSettings", "create_app"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceSettings:
    """Whom the service believes.

    Attributes:
        trust: keys whose bundles and records count.
        allow_unsigned: take those of strangers, too.
    """

    trust: TrustStore = field(default_factory=TrustStore.default)
    allow_unsigned: bool = False


def create_app(gallery: Gallery, settings: ServiceSettings | None = None) -> FastAPI:
    """The service for a gallery; the caller closes the gallery."""
    app = FastAPI(
        title="samespace gallery",
        version=version("samespace"),
        description="Vectors of one embedding space, searched by every model that was measured to fit it.",
        responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}},
    )
    app.state.gallery = gallery
    app.state.settings = settings or ServiceSettings()
    app.state.metrics = Metrics()
    app.include_router(_routes)
    app.add_exception_handler(SamespaceError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _not_served)
    app.middleware("http")(_measured)
    return app


def _gallery(request: Request) -> Gallery:
    return request.app.state.gallery


def _settings(request: Request) -> ServiceSettings:
    return request.app.state.settings


def _metrics(request: Request) -> Metrics:
    return request.app.state.metrics


def _claim(request: Request) -> Claim:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnknownTokenError("this needs the token of a handshake: Authorization: Bearer TOKEN; shake hands first")
    return _gallery(request).admitted(token)


_Gallery = Annotated[Gallery, Depends(_gallery)]
_Settings = Annotated[ServiceSettings, Depends(_settings)]
_Metrics = Annotated[Metrics, Depends(_metrics)]
_Claim = Annotated[Claim, Depends(_claim)]

# The handlers are plain functions: FastAPI runs them in threads, for databases and NumPy block.
_routes = APIRouter()


@_routes.get(f"{API}/health")
def health(gallery: _Gallery) -> GalleryHealth:
    """What the service holds; 503 when its store does not answer."""
    states = (
        SpaceState(space_id=s.space.space_id, space=s.space, serving_model_id=s.serving_model_id, items=s.items)
        for s in gallery.spaces()
    )
    return GalleryHealth(status="ok", version=version("samespace"), spaces=tuple(states))


@_routes.get("/metrics", response_class=Response)
def metrics(gallery: _Gallery, metrics: _Metrics) -> Response:
    """For Prometheus. What is counted here can be had when the store does not answer, too."""
    try:
        spaces = gallery.spaces()
    except GalleryError:
        spaces = ()
    return Response(metrics.exposition(spaces), media_type=metrics.content_type)


@_routes.post(f"{API}/spaces")
def found_space(message: FoundSpace, gallery: _Gallery, settings: _Settings) -> Introduced:
    """Found a space by its cloud model's signed bundle; nothing changes when it is there already."""
    evidence = verified_evidence(message.proof, settings.trust, allow_unsigned=settings.allow_unsigned)
    return _introduced(gallery.found(evidence, message.images, message.vectors.array()))


@_routes.post(f"{API}/models")
def introduce_model(proof: BundleProof, gallery: _Gallery, settings: _Settings) -> Introduced:
    """Make a model a member of its space; its compatibility record is measured from the signed evidence."""
    evidence = verified_evidence(proof, settings.trust, allow_unsigned=settings.allow_unsigned)
    return _introduced(gallery.members.introduce(evidence))


@_routes.post(f"{API}/records")
def register_record(message: SignedRecord, gallery: _Gallery, settings: _Settings) -> CompatibilityRecord:
    """Keep a compatibility record that was measured elsewhere and is signed by a trusted key; the newest of a pair counts."""
    signer = verified_record(message, settings.trust, allow_unsigned=settings.allow_unsigned)
    gallery.members.put_record(message.record, signer)
    return message.record


@_routes.post(f"{API}/handshake")
def handshake(message: HandshakeRequest, gallery: _Gallery) -> ChallengeSet:
    """Ask for pictures to embed."""
    challenge, images = gallery.challenge(Claim(**message.model_dump()))
    return ChallengeSet(challenge=challenge, images=images)


@_routes.post(f"{API}/handshake/answer")
def answer_handshake(message: ChallengeAnswer, gallery: _Gallery, metrics: _Metrics) -> Admission:
    """Show the embeddings; a token if they fit the gallery, else the reason why not."""
    with metrics.handshake():
        admitted = gallery.answer(message.challenge, message.vectors.array())
    return Admission(
        token=admitted.token,
        expires_in=admitted.seconds,
        space_id=admitted.claim.space_id,
        model_id=admitted.claim.model_id,
        serving_model_id=admitted.serving_model_id,
        measured=admitted.judgement.measured,
    )


@_routes.post(f"{API}/items")
def add_items(message: ItemBatch, gallery: _Gallery, claim: _Claim, metrics: _Metrics) -> Added:
    """Keep vectors, all of the message or none; they are on disk when this answers. Repeating it changes nothing."""
    ids = gallery.add(claim, message.space_id, message.model_id, message.ids, message.vectors.array(), message.metadata)
    metrics.added(len(ids))
    return Added(acknowledged=ids)


@_routes.post(f"{API}/items/known")
def known_items(message: Ids, gallery: _Gallery, claim: _Claim) -> Ids:
    """Which of the ids are there."""
    known = gallery.known(claim, message.ids)
    return Ids(ids=tuple(item_id for item_id in message.ids if item_id in known))


@_routes.get(f"{API}/items")
def get_item(item_id: str, gallery: _Gallery, claim: _Claim) -> Item:
    """One item with its vector."""
    found = gallery.get(claim, item_id)
    if found is None:
        raise _missing(item_id)
    model_id, item = found
    return Item(item_id=item_id, model_id=model_id, vector=Vectors.of(item.vector[None]), metadata=dict(item.metadata))


@_routes.delete(f"{API}/items")
def delete_item(item_id: str, gallery: _Gallery, claim: _Claim) -> Ids:
    """Forget one item."""
    if not gallery.delete(claim, [item_id]):
        raise _missing(item_id)
    return Ids(ids=(item_id,))


@_routes.post(f"{API}/search")
def search(message: SearchRequest, gallery: _Gallery, claim: _Claim, metrics: _Metrics) -> SearchResult:
    """The nearest items for each query."""
    queries = message.vectors.array()
    model_id, found = gallery.search(claim, message.space_id, message.model_id, queries, message.k, exact=message.exact)
    metrics.searched(len(queries))
    hits = (tuple(SearchHit(item_id=hit.item_id, score=hit.score, metadata=dict(hit.metadata)) for hit in row) for row in found)
    return SearchResult(model_id=model_id, hits=tuple(hits))


def _introduced(introduction: Introduction) -> Introduced:
    return Introduced(
        space_id=introduction.space_id,
        model_id=introduction.model_id,
        serving_model_id=introduction.serving_model_id,
        record=introduction.record,
    )


def _missing(item_id: str) -> MissingItemError:
    return MissingItemError(f"no item {item_id!r} in this gallery; add it first, or search for what there is")


async def _measured(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    with _metrics(request).request() as done:
        try:
            response = await call_next(request)
        except Exception:
            # Whatever we did not foresee: the details go to the log, not to strangers.
            _log.exception("%s %s failed", request.method, request.url.path)
            error = GalleryError("the service failed at this request; its log says why")
            response = _problem(error, 500, "internal")
        # The route, not the path: a scanner's thousand paths must not become a thousand time series.
        route = request.scope.get("route")
        done(request.method, getattr(route, "path", "unknown"), response.status_code)
    return response


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, SamespaceError)
    code, status = code_of(error)
    if status >= 500:
        _log.error("%s %s: %s", request.method, request.url.path, error)
    return _problem(error, status, code)


def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"])
    return _problem(GalleryError(f"the request cannot be understood: {place}: {first['msg']}; see /docs"), 422, "bad_request")


def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path}: {error.detail}; see /docs for what this gallery answers"
    return _problem(GalleryError(detail), error.status_code, "no_such_path")


def _problem(error: Exception, status: int, code: str) -> JSONResponse:
    problem = Problem(title=type(error).__name__, status=status, detail=str(error), code=code)
    return JSONResponse(problem.model_dump(), status_code=status, media_type="application/problem+json")
