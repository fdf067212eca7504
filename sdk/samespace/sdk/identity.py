"""Who made a vector, and what it may be compared with.

- A **model id** is the hash of architecture, float weights, embedding head, normalisation and preprocessing: another
  revision of the same name is another model.
- An **artifact id** is the SHA-256 of one exported file (or of a package's file list).
- A **space** is founded by one cloud model; its id contains that model's id.
- A **compatibility record** says that a query model (or artifact) was measured to be comparable with a gallery model.
  Vectors are comparable only through a record; a model is trivially comparable with itself. Equal dimension or equal name
  never suffices.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from samespace.sdk.preprocess import Preprocess

__all__ = ["CompatibilityRecord", "ModelRecord", "SpaceRecord", "canonical_json", "digest", "utc_now"]


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, no spaces and no NaN: the same bytes in every process.

    Numbers keep their kind (``1`` is not ``1.0``), and floats are written as Python's ``repr`` writes them: the shortest digits
    that give the same 64-bit value.

    Raises:
        ValueError: the value holds NaN, an infinity or text that is not Unicode.
        TypeError: the value holds something that JSON cannot say.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(data: bytes) -> str:
    """Lower-case hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()


def utc_now() -> str:
    """The time now, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """A copy of its own, of plain JSON types only: what is hashed is what a reader of the record gets."""
    try:
        return json.loads(canonical_json(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be plain JSON, with finite numbers ({error})") from None


_PlainJson = Annotated[dict[str, Any], AfterValidator(_plain_json)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Record):
    """Everything needed to rebuild a model and to tell it from any other."""

    name: str = Field(description="for people; two models may share it")
    role: Literal["cloud", "edge"]
    family: str = Field(description="entry point of the group samespace.models")
    arguments: _PlainJson = Field(description="keyword arguments of the family's builder, dim and image_size included")
    dim: int = Field(ge=2, le=65536, description="dimension of the embedding")
    normalisation: Literal["l2"] = "l2"
    preprocess: Preprocess
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the float weights, as safetensors bytes")

    @property
    def model_id(self) -> str:
        """``m-`` and 32 hexadecimal digits; everything but the name and the role goes into it."""
        return "m-" + digest(canonical_json(self.model_dump(mode="json", exclude={"name", "role"})))[:32]


class SpaceRecord(_Record):
    """A named, immutable embedding space, founded by one cloud model."""

    name: str
    founder_model_id: str = Field(pattern="^m-[0-9a-f]{32}$")
    dim: int = Field(ge=2, le=65536)
    metric: Literal["cosine"] = "cosine"
    normalisation: Literal["l2"] = "l2"

    @property
    def space_id(self) -> str:
        """``s-``, 16 digits of the founder's id, ``-`` and 16 digits of the hash of the whole record."""
        whole = digest(canonical_json(self.model_dump(mode="json")))[:16]
        return f"s-{self.founder_model_id[2:18]}-{whole}"


class CompatibilityRecord(_Record):
    """Measured, dated proof that queries of one model or artifact may search a gallery of another."""

    query_id: str = Field(pattern="^(m-[0-9a-f]{32}|[0-9a-f]{64})$", description="model id, or artifact id (SHA-256)")
    gallery_model_id: str = Field(pattern="^m-[0-9a-f]{32}$")
    space_id: str = Field(pattern="^s-[0-9a-f]{16}-[0-9a-f]{16}$")
    verdict: Literal["pass", "fail", "inconclusive"]
    report: _PlainJson = Field(description="the compatibility report's numbers")
    measured_at: str = Field(default_factory=utc_now, description="ISO 8601, UTC")
