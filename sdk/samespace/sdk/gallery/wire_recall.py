"""How many of the nearest items an approximate search finds: what was measured, for whoever asks a service how it is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["StatedRecall"]


class StatedRecall(BaseModel):
    """Mean recall of an index, measured with a sample of its own vectors as queries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recall: float = Field(ge=0, le=1, description="share of the k nearest that an ordinary search finds")
    low: float = Field(ge=0, le=1, description="of the 95 % confidence interval")
    high: float = Field(ge=0, le=1)
    k: int
    n: int = Field(description="queries")
    items: int = Field(description="that were there when it was measured")
    index: str = Field(description="which index, and how it keeps vectors")
    measured_at: str = Field(description="UTC, ISO 8601")
