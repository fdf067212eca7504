"""What a gallery knows besides vectors: spaces, their models, compatibility records, aliases, handshake challenges.

A :class:`Registry` only keeps and finds; what may be registered, and who may search what, is decided once, in
:mod:`samespace.cloud.gallery.membership`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from samespace.sdk.identity import CompatibilityRecord, ModelRecord, SpaceRecord
from samespace.sdk.manifest import Format, Precision

__all__ = ["SERVING", "Challenge", "RegisteredArtifact", "RegisteredModel", "RegisteredRecord", "Registry"]

#: The alias that names the model whose vectors answer searches.
SERVING = "serving"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RegisteredArtifact(_Entry):
    """An exported file of a model: a device says in its handshake which one it runs."""

    artifact_id: str
    format: Format
    precision: Precision


class RegisteredModel(_Entry):
    """A model that is a member of a space, as its signed manifest describes it.

    ``signer`` is the id of the key that signed the manifest, None for an unsigned one that the operator allowed.
    """

    record: ModelRecord
    space_id: str
    artifacts: tuple[RegisteredArtifact, ...]
    gates: dict[str, dict[str, float]]
    signer: str | None

    @property
    def model_id(self) -> str:
        return self.record.model_id

    def artifact(self, artifact_id: str) -> RegisteredArtifact | None:
        """The artifact with this id, if the model has it."""
        return next((artifact for artifact in self.artifacts if artifact.artifact_id == artifact_id), None)


class RegisteredRecord(_Entry):
    """A compatibility record and the id of the key that vouches for it."""

    record: CompatibilityRecord
    signer: str | None


@dataclass(frozen=True)
class Challenge:
    """A picture that no bundle contains, and what the gallery's model makes of it.

    Attributes:
        name: unique among the model's challenges.
        image: PNG bytes.
        embedding: ``(d,)`` float32, unit norm, by the model that the challenge belongs to.
    """

    name: str
    image: bytes
    embedding: npt.NDArray[np.float32]


class Registry(Protocol):
    """Keeps the entries of all spaces of one service. Every ``put`` is committed when it returns, and may be
    repeated.
    """

    def put_space(self, space: SpaceRecord) -> None:
        """Keep a space."""
        ...

    def space(self, space_id: str) -> SpaceRecord | None:
        """The space with this id."""
        ...

    def spaces(self) -> tuple[SpaceRecord, ...]:
        """All spaces, by id."""
        ...

    def put_model(self, model: RegisteredModel) -> None:
        """Keep a model; artifacts that it was not known to have before are added to those it was."""
        ...

    def model(self, model_id: str) -> RegisteredModel | None:
        """The model with this id."""
        ...

    def models(self, space_id: str) -> tuple[RegisteredModel, ...]:
        """The members of a space, by id."""
        ...

    def put_record(self, entry: RegisteredRecord) -> None:
        """Keep a compatibility record beside the older ones of the same pair."""
        ...

    def record(self, query_id: str, gallery_model_id: str) -> RegisteredRecord | None:
        """The pair's record that was measured last (registered last, among equals)."""
        ...

    def set_alias(self, space_id: str, name: str, model_id: str) -> None:
        """Let ``name`` mean ``model_id`` from now on."""
        ...

    def alias(self, space_id: str, name: str) -> str | None:
        """The model that ``name`` means in this space."""
        ...

    def put_challenges(self, model_id: str, challenges: tuple[Challenge, ...]) -> None:
        """Replace the challenges of a model."""
        ...

    def challenges(self, model_id: str) -> tuple[Challenge, ...]:
        """The challenges of a model, by name."""
        ...

    def ping(self) -> None:
        """Return when the store answers.

        Raises:
            GalleryUnavailableError: it does not.
        """
        ...

    def close(self) -> None:
        """Give back what the registry holds."""
        ...


def merged(old: RegisteredModel | None, new: RegisteredModel) -> RegisteredModel:
    """``new`` with the artifacts of ``old`` that it does not list: one model may be exported more than once."""
    if old is None:
        return new
    known = {artifact.artifact_id for artifact in new.artifacts}
    kept = tuple(artifact for artifact in old.artifacts if artifact.artifact_id not in known)
    return new.model_copy(update={"artifacts": kept + new.artifacts})
