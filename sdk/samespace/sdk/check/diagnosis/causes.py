"""What a diagnosis says."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from samespace.sdk.check.diagnosis.catalogue import CAUSES

__all__ = ["Cause", "Diagnosis", "cause"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cause(_Part):
    """One cause."""

    name: str = Field(description="stable id, e.g. 'bgr'")
    summary: str = Field(description="what is wrong, in a sentence")
    mend: str = Field(description="what to do about it")
    fit: float = Field(ge=0, le=1, description="share of the difference that it explains")


class Diagnosis(_Part):
    """Causes, best first."""

    causes: tuple[Cause, ...] = Field(description="empty: healthy")

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.causes


def cause(name: str, fit: float) -> Cause:
    """The catalogue's cause of that name."""
    entry = CAUSES[name]
    return Cause(name=name, summary=entry.summary, mend=entry.mend, fit=min(1.0, max(0.0, fit)))
