"""What routes ask for: the gallery, who asks, and the claim that a token stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel, ValidationError

from samespace.cloud.gallery.access import EVERYBODY, KEY_HEADER, Caller, require
from samespace.cloud.gallery.drift import Bucket, DriftMonitor, DriftPolicy
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.keys import KeyRing
from samespace.cloud.gallery.limits import Limits
from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.metrics import Metrics
from samespace.sdk.errors import HandshakeRefusedError
from samespace.sdk.gallery.wire import UnknownTokenError
from samespace.sdk.gallery.wire_admin import ForbiddenError
from samespace.sdk.signing import TrustStore

__all__ = [
    "AdminOf",
    "ClaimOf",
    "DriftOf",
    "GalleryOf",
    "MetricsOf",
    "OperatorOf",
    "PathText",
    "ReaderOf",
    "ServiceSettings",
    "SettingsOf",
    "Text",
    "WriterClaimOf",
    "WriterOf",
    "bucket_of",
    "busy",
    "claimed",
    "message_of",
]


Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True)
class ServiceSettings:
    """Whom the service believes, and how much it takes.

    Attributes:
        trust: keys whose bundles and records count.
        allow_unsigned: take those of strangers, too.
        keys: API keys; without, everybody may do everything.
        limits: on sizes, rates and connections.
        drift: how closely queries are watched.
    """

    trust: TrustStore = field(default_factory=TrustStore.default)
    allow_unsigned: bool = False
    keys: KeyRing | None = None
    limits: Limits = field(default_factory=Limits)
    drift: DriftPolicy = field(default_factory=DriftPolicy)


# Coroutines, though none of them waits: FastAPI sends plain functions to a thread, each for longer than it takes.
async def gallery_of(request: Request) -> Gallery:
    return request.app.state.gallery


async def settings_of(request: Request) -> ServiceSettings:
    return request.app.state.settings


async def metrics_of(request: Request) -> Metrics:
    return request.app.state.metrics


async def drift_of(request: Request) -> DriftMonitor:
    return request.app.state.drift


# For the description only: the gate has checked the key before.
_key = APIKeyHeader(name=KEY_HEADER, auto_error=False, description="of a service that was started with keys")
_token = HTTPBearer(auto_error=False, description="of a passed handshake")


async def reader(request: Request, _: Annotated[str | None, Security(_key)]) -> Caller:
    return reading(request)


def reading(request: Request) -> Caller:
    """Who asks, and may read."""
    caller: Caller = getattr(request.state, "caller", EVERYBODY)
    require(caller, "reader")
    return caller


async def writer(caller: Annotated[Caller, Depends(reader)]) -> Caller:
    require(caller, "writer")
    return caller


async def admin(caller: Annotated[Caller, Depends(reader)]) -> Caller:
    require(caller, "admin")
    return caller


async def operator(caller: Annotated[Caller, Depends(reader)]) -> Caller:
    require(caller, "admin", operator=True)
    return caller


async def claim_of(
    request: Request, caller: Annotated[Caller, Depends(reader)], _: Annotated[object, Security(_token)]
) -> Claim:
    return claimed(request, caller)


def claimed(request: Request, caller: Caller | None = None) -> Claim:
    """Who asks for something about vectors, by the token of a handshake.

    Raises:
        UnknownTokenError: there is none, or it counts no more.
        ForbiddenError: it is another tenant's, or the key's role is not enough.
        HandshakeRefusedError: clients of this kind drift, and the policy is to refuse them.
    """
    caller = caller or reading(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise UnknownTokenError("this needs the token of a handshake: Authorization: Bearer TOKEN; shake hands first")
    gallery: Gallery = request.app.state.gallery
    claim = gallery.admitted(token)
    if claim.tenant != caller.tenant:
        raise ForbiddenError("this token was given to another tenant's key; shake hands with your own")
    warnings = (
        [] if claim.verified else ["this device did not pass its handshake: its hits may be wrong; run 'samespace check'"]
    )
    if (reason := request.app.state.drift.drifting(bucket_of(claim))) is not None:
        if gallery.policy.drifting == "refuse":
            raise HandshakeRefusedError(f"devices of this kind are refused: {reason}")
        warnings.append(reason)
    request.state.warnings = warnings
    request.state.logged = {"space": claim.space_id, "model": claim.model_id, "device": claim.device, "runtime": claim.runtime}
    return claim


async def writer_claim(claim: Annotated[Claim, Depends(claim_of)], _: Annotated[Caller, Depends(writer)]) -> Claim:
    return claim


def bucket_of(claim: Claim) -> Bucket:
    """The kind of client that a claim is of."""
    return Bucket(claim.tenant, claim.space_id, claim.model_id, claim.device, claim.runtime)


async def message_of(request: Request, kind: type[Message]) -> Message:
    """The request's body.

    Raises:
        RequestValidationError: as FastAPI raises it.
    """
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False, include_context=False)]
        raise RequestValidationError(found) from None


def busy(kind: type[BaseModel]) -> dict[str, Any]:
    """What FastAPI would write into the OpenAPI description of a route that asks for ``kind`` and a claim.

    The busiest routes take the request alone and call :func:`claimed` and :func:`message_of` themselves: looking up eight
    dependencies costs more time than a search does.
    """
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    schemes = [{scheme.scheme_name: []} for scheme in (_key, _token)]
    return {"requestBody": {"content": content, "required": True}, "security": schemes}


#: Text that every store takes: no NUL, no control characters; the same as of names in messages.
Text = Annotated[str, Query(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
PathText = Annotated[str, Path(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
GalleryOf = Annotated[Gallery, Depends(gallery_of)]
SettingsOf = Annotated[ServiceSettings, Depends(settings_of)]
MetricsOf = Annotated[Metrics, Depends(metrics_of)]
DriftOf = Annotated[DriftMonitor, Depends(drift_of)]
ReaderOf = Annotated[Caller, Depends(reader)]
WriterOf = Annotated[Caller, Depends(writer)]
AdminOf = Annotated[Caller, Depends(admin)]
OperatorOf = Annotated[Caller, Depends(operator)]
ClaimOf = Annotated[Claim, Depends(claim_of)]
WriterClaimOf = Annotated[Claim, Depends(writer_claim)]
