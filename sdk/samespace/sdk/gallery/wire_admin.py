"""What a gallery service and those who run it say to each other: keys, references, explanations, export, aliases, drift.

The errors here are refusals of the service as a whole, not of a vector; :data:`samespace.sdk.gallery.wire.CODES` has their
codes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from samespace.sdk.errors import GalleryError, GalleryUnavailableError

__all__ = [
    "TENANT",
    "AliasRequest",
    "Aliases",
    "ApiKeyError",
    "DriftBucket",
    "DriftReport",
    "Explained",
    "Explanation",
    "ForbiddenError",
    "KeyInfo",
    "KeyList",
    "NewKey",
    "NewKeyRequest",
    "OverloadedError",
    "PairInfo",
    "RateLimitedError",
    "Role",
    "TooLargeError",
    "UpgradeRefusedError",
]

Role = Literal["reader", "writer", "admin"]
#: Form of a tenant's name; empty is the tenant of a service without tenants.
TENANT = r"([a-z0-9][a-z0-9._-]{0,63})?"


class ApiKeyError(GalleryError):
    """No API key, a wrong one or a revoked one."""


class ForbiddenError(GalleryError):
    """The API key is good, but not for this: its role may not do it, or the token belongs to another key's tenant."""


class TooLargeError(GalleryError):
    """The request is larger than this gallery reads, or comes too slowly."""


class RateLimitedError(GalleryError):
    """Too many requests of one key or address; repeat it after the seconds that ``Retry-After`` says."""


class OverloadedError(GalleryUnavailableError):
    """The service has no room at the moment, or is about to stop; repeat it after ``Retry-After`` seconds."""


class UpgradeRefusedError(GalleryError):
    """The upgrade must not go live, or this cannot be done with it as it stands."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KeyInfo(_Message):
    """What is kept of an API key, but for its hash."""

    key_id: str
    role: Role
    tenant: str = Field(description="whose gallery it opens; empty where there are no tenants")
    name: str = Field(max_length=200, description="for people")
    created: float = Field(description="seconds since 1970")
    revoked: float | None = Field(description="seconds since 1970; null for a key that is good")


class NewKeyRequest(_Message):
    """Asks for a key; the tenant is that of the asking key, unless that one has none."""

    role: Role
    tenant: str = Field(default="", pattern=f"^{TENANT}$")
    name: str = Field(default="", max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")


class NewKey(_Message):
    """A new key; its text is shown only here."""

    key: str
    info: KeyInfo


class KeyList(_Message):
    """Keys, oldest first."""

    keys: tuple[KeyInfo, ...]


class AliasRequest(_Message):
    """Lets a name mean a model from now on."""

    model_id: str = Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")


class Aliases(_Message):
    """The aliases of a space."""

    space_id: str
    aliases: dict[str, str]


class PairInfo(_Message):
    """Why two models' vectors are compared."""

    query_model_id: str
    gallery_model_id: str
    verdict: str = Field(description="'same model', or the compatibility record's")
    measured_at: str | None
    signer: str | None = Field(description="id of the key that vouches for the record")
    separation: float | None = Field(description="share of other pictures that a picture's own pair beats; 0.5 is chance")
    expected_cosine: float | None = Field(description="mean cosine of a picture's own pair, as the record has it")
    expected_spread: float | None = Field(description="its standard deviation")


class Explanation(_Message):
    """Why an item is a hit."""

    item_id: str
    rank: int
    score: float = Field(description="cosine")
    margin: float = Field(description="above the next hit; 0 for the last")
    as_same_picture: float | None = Field(
        description="standard deviations from the record's pairs of one picture; null without such a record"
    )
    gallery_share: float = Field(description="share of a sample of the gallery that scores lower")
    strongest: tuple[tuple[int, float], ...] = Field(description="coordinates that contribute most to the score, and how much")


class Explained(_Message):
    """For each query, why its hits are its hits."""

    pair: PairInfo
    sample: int = Field(description="how many items of the gallery the shares were measured on")
    hits: tuple[tuple[Explanation, ...], ...]


class DriftBucket(_Message):
    """One kind of client beside the gallery."""

    model_id: str
    device: str
    runtime: str
    state: Literal["learning", "stationary", "drifting"]
    queries: int
    windows: int = Field(description="tests held since the reference was complete")
    statistic: float | None = Field(description="MMD^2 of the last test")
    p_value: float | None
    reason: str


class DriftReport(_Message):
    """Every bucket of the asking key's tenant, with the rate of false alarms that was promised."""

    false_alarm_rate: float = Field(description="chance that a window of a stationary bucket is reported, at most")
    buckets: tuple[DriftBucket, ...]
