"""Who belongs to a space, and whose vectors may be compared with whose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.evidence import Evidence, measured_record, registered_model
from samespace.cloud.gallery.registry import SERVING, Challenge, RegisteredModel, RegisteredRecord, Registry
from samespace.cloud.gallery.successor import Successor, SuccessorShelf
from samespace.cloud.gallery.vectors import checked_vectors
from samespace.sdk.errors import ConfigError, GalleryError, SpaceMismatchError
from samespace.sdk.gallery.wire import UnknownModelError
from samespace.sdk.gallery.wire_admin import UpgradeRefusedError
from samespace.sdk.identity import CompatibilityRecord, SpaceRecord

__all__ = ["MIN_CHALLENGES", "Claim", "Introduction", "Membership"]

#: With fewer pictures no handshake could tell right from wrong.
MIN_CHALLENGES = 8
#: Seconds for which an answer of the registry is believed: so long another process's alias or record may go unnoticed in
#: searches. This process's own take effect at once, and writes always ask.
_RECENT = 1.0
#: Most answers that are kept so.
_REMEMBERED = 4096
_NONE = "none"


@dataclass(frozen=True)
class Claim:
    """Who a device says it is; once admitted, who it is.

    Attributes:
        device: kind of device, as it says.
        tenant: whose gallery it may use: that of its API key.
        verified: False for one that did not pass and is let in with a warning.
    """

    space_id: str
    model_id: str
    artifact_id: str
    runtime: str
    device: str = ""
    tenant: str = ""
    verified: bool = True


@dataclass(frozen=True)
class Introduction:
    """A model that became a member of a space; ``record`` is None for the model whose vectors are served."""

    space_id: str
    model_id: str
    serving_model_id: str
    record: CompatibilityRecord | None


class Membership:
    """The rules over a registry: it decides what may be registered, and answers who may do what.

    Args:
        registry: keeps what was decided.
        successors: upgrades that are under way.

    Attributes:
        successors: the same.
    """

    def __init__(self, registry: Registry, successors: SuccessorShelf) -> None:
        self._registry = registry
        self.successors = successors
        self._recent: dict[tuple[str, ...], tuple[float, Any]] = {}

    def found(self, evidence: Evidence, images: Sequence[bytes], embeddings: npt.NDArray[np.floating]) -> Introduction:
        """Found a space by its cloud model. A space that is there already stays as it is, its challenges too.

        Args:
            evidence: of the cloud model's bundle.
            images: pictures (PNG) that are in no bundle.
            embeddings: ``(n, d)``, the cloud model's, of just these pictures.

        Raises:
            SpaceMismatchError: the bundle's model is not its space's founder, or belongs to another space here.
            ConfigError: too few challenges.
        """
        model, space = registered_model(evidence.manifest, evidence.signer), evidence.manifest.space
        if space.founder_model_id != model.model_id:
            raise SpaceMismatchError(
                f"the space {space.space_id} was founded by the model {space.founder_model_id}, this bundle's is "
                f"{model.model_id}; found it with the cloud model's bundle"
            )
        if self._registry.alias(space.space_id, SERVING) is None:
            vectors = checked_vectors(embeddings, space.dim, space.space_id, lambda row: f"challenge {row}")
            if len(images) != len(vectors) or len(images) < MIN_CHALLENGES:
                raise ConfigError(
                    f"a space needs at least {MIN_CHALLENGES} challenge pictures with one embedding each; "
                    f"got {len(images)} pictures and {len(vectors)} embeddings"
                )
            self._join(model)
            self._registry.put_space(space)
            self._registry.put_model(model)
            challenges = (Challenge(f"{i:05d}", image, row) for i, (image, row) in enumerate(zip(images, vectors, strict=True)))
            self._registry.put_challenges(model.model_id, tuple(challenges))
            # Last: a space that nothing serves is not there yet, so a crash before this line leaves nothing
            # half-founded.
            self._registry.set_alias(space.space_id, SERVING, model.model_id)
            self._recent.clear()
        return self.introduce(evidence)

    def introduce(self, evidence: Evidence) -> Introduction:
        """Make a model a member of its space, and keep the compatibility record that its evidence gives.

        Raises:
            SpaceMismatchError: the space is not here, or the model belongs to another one.
        """
        model = registered_model(evidence.manifest, evidence.signer)
        space, dim = self.space(model.space_id), evidence.manifest.model.dim
        if dim != space.dim:
            raise SpaceMismatchError(
                f"the model {model.model_id} embeds in {dim} dimensions; this gallery searches all {space.dim} of the space "
                f"{space.name!r}: search the first {dim} coordinates with an index of your own, or train a model of {space.dim}"
            )
        serving = self.serving(model.space_id)
        self._join(model)
        self._registry.put_model(model)
        self._recent.clear()
        record = None
        if model.model_id != evidence.manifest.space.founder_model_id:
            record = measured_record(evidence)
            self._registry.put_record(RegisteredRecord(record=record, signer=evidence.signer))
        return Introduction(model.space_id, model.model_id, serving, record)

    def put_record(self, record: CompatibilityRecord, signer: str | None) -> None:
        """Keep a record that was measured elsewhere; the newest of a pair counts.

        Raises:
            SpaceMismatchError: its space or gallery model is not here.
        """
        self.space(record.space_id)
        model = self._registry.model(record.gallery_model_id)
        if model is None or model.space_id != record.space_id:
            raise SpaceMismatchError(
                f"the record's gallery model {record.gallery_model_id} is no member of the space {record.space_id}; "
                "introduce it first"
            )
        self._registry.put_record(RegisteredRecord(record=record, signer=signer))
        self._recent.clear()

    def set_alias(self, space_id: str, name: str, model_id: str) -> None:
        """Let a name mean a member of the space from now on.

        Raises:
            SpaceMismatchError: the space is not here.
            UnknownModelError: the model is no member of it.
        """
        self.space(space_id)
        model = self._registry.model(model_id)
        if model is None or model.space_id != space_id:
            raise UnknownModelError(f"the model {model_id} is no member of the space {space_id}; introduce it with its bundle")
        self._registry.set_alias(space_id, name, model_id)
        self._recent.clear()

    def space(self, space_id: str) -> SpaceRecord:
        """A space that is served here.

        Raises:
            SpaceMismatchError: it is not.
        """
        space = self._recently("space", space_id, find=lambda: self._registry.space(space_id))
        if space is None or self._recently("serving", space_id, find=lambda: self._registry.alias(space_id, SERVING)) is None:
            here = [s.space_id for s in self._registry.spaces() if self._registry.alias(s.space_id, SERVING) is not None]
            raise SpaceMismatchError(
                f"the space {space_id} is not in this gallery, which holds {_listed(here)}; use a bundle of a space "
                "that is here, or found it with its cloud bundle: samespace gallery serve --bundle"
            )
        return space

    def serving(self, space_id: str, *, now: bool = False) -> str:
        """The model whose vectors answer searches in this space.

        Args:
            now: for a write: ask the registry, whatever was true a moment ago.

        Raises:
            GalleryError: there is none.
        """
        find = lambda: self._registry.alias(space_id, SERVING)  # noqa: E731
        model_id = find() if now else self._recently("serving", space_id, find=find)
        if model_id is None:
            raise GalleryError(f"nothing serves the space {space_id}; found it again with its cloud bundle")
        return model_id

    def successor(self, space_id: str, *, now: bool = False) -> Successor | None:
        """The upgrade of a space that is under way.

        Args:
            now: for a write: ask the registry, whatever was true a moment ago.
        """
        return self.successors.of(space_id, now=now)

    def upgrade(self, space_id: str) -> Successor:
        """The upgrade of a space that is under way at this moment.

        Raises:
            UpgradeRefusedError: none is.
        """
        successor = self.successor(space_id, now=True)
        if successor is None:
            raise UpgradeRefusedError(
                f"no upgrade of the space {space_id} is under way; register one: samespace gallery upgrade"
            )
        return successor

    def generations(self, space_id: str, *, now: bool = False) -> tuple[str, ...]:
        """The models whose vectors a space is made of: the serving one and, in an upgrade, the other one.

        Raises:
            GalleryError: nothing serves the space.
        """
        serving, successor = self.serving(space_id, now=now), self.successor(space_id, now=now)
        return (serving,) if successor is None else (serving, successor.other(serving))

    def searchable(self, claim: Claim) -> tuple[str, ...]:
        """Those of the models whose vectors the claimed model may search; its own first, else the serving one.

        Raises:
            SpaceMismatchError: none of them.
        """
        models = sorted(self.generations(claim.space_id), key=lambda model_id: model_id != claim.model_id)
        successor = self.successor(claim.space_id)
        # Who forces a promotion answers for it; without the old vectors the new model would find nothing at all.
        answered = successor is not None and successor.forced and claim.model_id == successor.new_model_id
        allowed, refused = [], []
        for model_id in models:
            try:
                if not answered:
                    self.comparable(claim, model_id)
                allowed.append(model_id)
            except SpaceMismatchError as error:
                refused.append(error)
        if not allowed:
            raise refused[0]
        return tuple(allowed)

    def forget(self) -> None:
        """Believe no earlier answer."""
        self._recent.clear()
        self.successors.forget()

    def member(self, claim: Claim) -> RegisteredModel:
        """The claimed model.

        Raises:
            SpaceMismatchError: the space is not here.
            UnknownModelError: the model, or this artifact of it, was not introduced.
        """
        self.space(claim.space_id)
        model = self._recently("model", claim.model_id, find=lambda: self._registry.model(claim.model_id))
        if model is None or model.space_id != claim.space_id:
            raise UnknownModelError(
                f"the model {claim.model_id} is not known in the space {claim.space_id}; introduce it with its bundle"
            )
        if model.artifact(claim.artifact_id) is None:
            raise UnknownModelError(
                f"the model {claim.model_id} is not known to have the artifact {claim.artifact_id}; introduce its newest bundle"
            )
        return model

    def comparable(self, claim: Claim, serving: str) -> CompatibilityRecord | None:
        """The record that lets the claimed model search vectors of ``serving``; None for the serving model itself.

        A record of the artifact goes before one of its model.

        Raises:
            SpaceMismatchError: there is none, or it does not say "pass".
        """
        entry = self.registered_record(claim, serving)
        if entry is None and claim.model_id == serving:
            return None
        if entry is None or entry.record.space_id != claim.space_id:
            raise SpaceMismatchError(
                f"no compatibility record says that {claim.model_id} may search vectors of {serving}; introduce its "
                "bundle, or measure the pair and register the record. Equal dimension is not enough"
            )
        if entry.record.verdict != "pass":
            raise SpaceMismatchError(
                f"the compatibility record of {entry.record.query_id} against {serving} says {entry.record.verdict!r} "
                f"({_essence(entry.record.report)}): its vectors would find the wrong items; co-train the model into this space"
            )
        return entry.record

    def registered_record(self, claim: Claim, serving: str) -> RegisteredRecord | None:
        """The record that counts for a claim, whatever it says; None for the serving model itself where there is none."""

        def find() -> RegisteredRecord | str:
            of_artifact = self._registry.record(claim.artifact_id, serving)
            if of_artifact is not None or claim.model_id == serving:
                return of_artifact or _NONE
            return self._registry.record(claim.model_id, serving) or _NONE

        found = self._recently("record", claim.artifact_id, claim.model_id, serving, find=find)
        return None if found == _NONE else found

    def _recently(self, *key: str, find: Callable[[], Any]) -> Any:
        """What was found a moment ago, or what is found now. Every search asks these same few questions."""
        now = time.monotonic()
        until, value = self._recent.get(key, (0.0, None))
        if value is None or now >= until:
            value = find()
            if len(self._recent) >= _REMEMBERED:
                self._recent.clear()
            self._recent[key] = (now + _RECENT, value)
        return value

    def _join(self, model: RegisteredModel) -> None:
        known = self._registry.model(model.model_id)
        if known is not None and known.space_id != model.space_id:
            raise SpaceMismatchError(
                f"the model {model.model_id} is a member of the space {known.space_id} here, not of {model.space_id}; "
                "serve the other space from a database of its own"
            )


def _listed(ids: Iterable[str]) -> str:
    return ", ".join(ids) or "no space yet"


def _essence(report: Mapping[str, Any]) -> str:
    separation = report.get("separation")
    if isinstance(separation, dict) and {"value", "low", "high", "bar"} <= separation.keys():
        return (
            f"separation {separation['value']:.2f} [{separation['low']:.2f}, {separation['high']:.2f}], "
            f"{separation['bar']:.2f} is needed, chance is 0.50"
        )
    return "see its report"
