"""What a gallery service and its clients say to each other: JSON over HTTP, one pydantic model a message.

Bytes travel as base64. Vectors travel as base64 of float32 rows, little-endian: exact, and a quarter of the size of
decimals. A refusal is a ``application/problem+json`` (RFC 9457) with a stable ``code``, which the client turns back
into the error that the service raised; see :data:`CODES`.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from samespace.sdk.errors import (
    BundleError,
    ConfigError,
    EmbeddingError,
    FormatVersionError,
    GalleryError,
    GalleryUnavailableError,
    HandshakeRefusedError,
    IntegrityError,
    SamespaceError,
    SignatureError,
    SpaceMismatchError,
)
from samespace.sdk.gallery.wire_admin import (
    ApiKeyError,
    ForbiddenError,
    OverloadedError,
    RateLimitedError,
    TooLargeError,
    UpgradeRefusedError,
)
from samespace.sdk.gallery.wire_recall import StatedRecall
from samespace.sdk.identity import CompatibilityRecord, SpaceRecord

__all__ = [
    "API",
    "CODES",
    "MAX_BATCH",
    "PROOF_FILES",
    "Added",
    "Admission",
    "BundleProof",
    "ChallengeAnswer",
    "ChallengeSet",
    "FoundSpace",
    "GalleryHealth",
    "HandshakeRequest",
    "Ids",
    "Introduced",
    "Item",
    "ItemBatch",
    "Metadata",
    "MissingItemError",
    "Place",
    "Problem",
    "SearchHit",
    "SearchRequest",
    "SearchResult",
    "SignedRecord",
    "SpaceState",
    "UnknownModelError",
    "UnknownTokenError",
    "Vectors",
    "Where",
    "code_of",
    "error_of",
]

#: Prefix of every path but ``/metrics`` and the documentation.
API = "/v1"
#: Most vectors, items or ids of one message.
MAX_BATCH = 1024
#: The files of a bundle that prove what its model does: verified against the signed manifest, they need no other trust.
PROOF_FILES = ("probes/reference.safetensors", "probes/mistakes.safetensors", "evidence.json")


class UnknownModelError(SpaceMismatchError):
    """The gallery does not know that model or artifact yet; introduce it with its bundle."""


class UnknownTokenError(HandshakeRefusedError):
    """No token, an expired one, or one that the service did not give; shake hands (again)."""


class MissingItemError(GalleryError):
    """The gallery has no such item."""


#: Error -> (stable code, HTTP status). The first that an error is an instance of counts.
CODES: tuple[tuple[type[SamespaceError], str, int], ...] = (
    (UnknownModelError, "unknown_model", 409),
    (SpaceMismatchError, "space_mismatch", 409),
    (EmbeddingError, "bad_embedding", 422),
    (UnknownTokenError, "token", 401),
    (HandshakeRefusedError, "handshake_refused", 403),
    (OverloadedError, "overloaded", 503),
    (GalleryUnavailableError, "unavailable", 503),
    (ApiKeyError, "api_key", 401),
    (ForbiddenError, "forbidden", 403),
    (TooLargeError, "too_large", 413),
    (RateLimitedError, "rate_limited", 429),
    (MissingItemError, "no_such_item", 404),
    (UpgradeRefusedError, "upgrade_refused", 409),
    (SignatureError, "signature", 403),
    (FormatVersionError, "format_version", 422),
    (IntegrityError, "integrity", 422),
    (BundleError, "bundle", 422),
    (ConfigError, "bad_request", 422),
    (GalleryError, "gallery", 500),
)


def code_of(error: SamespaceError) -> tuple[str, int]:
    """Stable code and HTTP status of an error."""
    return next(((code, status) for kind, code, status in CODES if isinstance(error, kind)), ("gallery", 500))


def error_of(code: str, detail: str) -> SamespaceError:
    """The error that a problem's code stands for; :class:`GalleryError` for codes of newer services."""
    return next((kind(detail) for kind, known, _ in CODES if known == code), GalleryError(detail))


def _decoded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


Blob = Annotated[
    bytes,
    BeforeValidator(_decoded),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "byte"}),
]

Name = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")]
#: No store takes a NUL.
_Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
#: Flat facts that come back with a hit.
Metadata = Annotated[dict[Name, _Text | int | float | bool | None], Field(max_length=64)]
_Value = _Text | int | float | bool | None
#: What metadata must say: a value, or one of several.
Where = Annotated[dict[Name, _Value | Annotated[tuple[_Value, ...], Field(max_length=256)]], Field(max_length=16)]


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Vectors(_Message):
    """``(count, dim)`` float32 rows, little-endian."""

    count: int = Field(ge=0, le=MAX_BATCH)
    dim: int = Field(ge=1, le=65536)
    data: Blob

    @classmethod
    def of(cls, rows: npt.NDArray[np.floating]) -> Self:
        """Pack ``(n, d)`` rows."""
        return cls(count=rows.shape[0], dim=rows.shape[1], data=np.ascontiguousarray(rows, "<f4").tobytes())

    def array(self) -> npt.NDArray[np.float32]:
        """The rows. What they hold is judged by who uses them.

        Raises:
            SpaceMismatchError: the data has not the length that count and dim say.
        """
        if len(self.data) != 4 * self.count * self.dim:
            raise SpaceMismatchError(
                f"vectors: {self.count} rows of {self.dim} float32 need {4 * self.count * self.dim} bytes, got "
                f"{len(self.data)}; send float32, little-endian, one row after the other"
            )
        return np.frombuffer(self.data, "<f4").astype(np.float32).reshape(self.count, self.dim)


class Problem(_Message):
    """A refusal (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="for people: what was wrong, and what to do")
    code: str = Field(description="for programs; stable")
    diagnosis: tuple[str, ...] = Field(
        default=(), description="of a refused handshake: the mistakes that explain it, best first; left out when there are none"
    )


class BundleProof(_Message):
    """What a gallery must see of a bundle to know its model: the signed manifest, and some of the files that it
    lists.
    """

    manifest: Blob
    signature: Blob | None
    files: dict[str, Blob]


class ChallengeSet(_Message):
    """Pictures that no bundle contains; in an answer to a handshake request, without embeddings."""

    challenge: str = Field(default="", description="opaque; sent back with the answer")
    images: tuple[Blob, ...] = Field(max_length=MAX_BATCH, description="PNG or JPEG, some with an EXIF orientation")


class FoundSpace(_Message):
    """Founds a space by its cloud model, with the challenges that later devices must answer."""

    proof: BundleProof
    images: tuple[Blob, ...] = Field(max_length=MAX_BATCH, description="PNG")
    vectors: Vectors = Field(description="the cloud model's embeddings of the images")


class Introduced(_Message):
    """What the gallery makes of a model after its introduction."""

    space_id: str
    model_id: str
    serving_model_id: str
    record: CompatibilityRecord | None = Field(description="None for the model that the gallery is made of")


class SignedRecord(_Message):
    """A compatibility record, signed over its canonical JSON by a key that the service trusts."""

    record: CompatibilityRecord
    public_key: Blob | None = Field(description="32 bytes, Ed25519")
    signature: Blob | None = Field(description="64 bytes")


class HandshakeRequest(_Message):
    """Who wants to talk: which artifact of which model, run by what."""

    LATER: ClassVar[tuple[str, ...]] = ("device",)

    space_id: Name
    model_id: Name
    artifact_id: Name
    runtime: Name
    device: str = Field(
        default="",
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="kind of device; who sends it understands diagnoses",
    )


class ChallengeAnswer(_Message):
    """The device's own embeddings of the challenge's images, in their order."""

    challenge: str
    vectors: Vectors


class Admission(_Message):
    """A passed handshake: the token goes into ``Authorization: Bearer``."""

    token: str
    expires_in: float = Field(description="seconds")
    space_id: str
    model_id: str
    serving_model_id: str = Field(description="whose vectors answer searches")
    measured: dict[str, float] = Field(description="what the judgement stands on, e.g. the mean cosine")
    warnings: tuple[str, ...] = Field(
        default=(), description="why it would be refused where the policy is stricter; left out when there are none"
    )


class Item(_Message):
    """A stored item. ``vector`` has one row."""

    item_id: Name
    model_id: str
    vector: Vectors
    metadata: Metadata


class ItemBatch(_Message):
    """Vectors to keep. Each carries its space and the model that made it."""

    space_id: Name
    model_id: Name
    ids: tuple[Name, ...] = Field(max_length=MAX_BATCH)
    metadata: tuple[Metadata, ...] = Field(max_length=MAX_BATCH)
    vectors: Vectors


class Ids(_Message):
    """Item ids: to ask about, or the answer."""

    ids: tuple[Name, ...] = Field(max_length=MAX_BATCH)


class Added(_Message):
    """These are on disk now: whatever happens to the service, they are not lost."""

    acknowledged: tuple[str, ...]


class Place(_Message):
    """A hit's place in a ranking: by score, and among equal scores by id."""

    score: float
    item_id: Name


class SearchRequest(_Message):
    """Query vectors; they carry their space and the model that made them."""

    LATER: ClassVar[tuple[str, ...]] = ("where", "after")

    space_id: Name
    model_id: Name
    vectors: Vectors
    k: int = Field(default=10, ge=1, le=1000)
    exact: bool = Field(default=False, description="compare with every vector; else the index may approximate")
    where: Where = Field(default={}, description="only items whose metadata have these values; of a list, any")
    after: Place | None = Field(default=None, description="of one query: only hits that come after this one, to turn pages")


class SearchHit(_Message):
    """An item that was found; ``score`` is the cosine."""

    item_id: str
    score: float
    metadata: Metadata


class SearchResult(_Message):
    """For each query, the nearest items, nearest first."""

    model_id: str = Field(description="whose vectors were searched")
    hits: tuple[tuple[SearchHit, ...], ...]


class SpaceState(_Message):
    """A space of the service."""

    space_id: str
    space: SpaceRecord
    serving_model_id: str
    items: int
    recall: StatedRecall | None = Field(default=None, description="of approximate searches, as it was measured last")


class GalleryHealth(_Message):
    """Answered only when the store answers too."""

    status: str
    version: str
    spaces: tuple[SpaceState, ...]
