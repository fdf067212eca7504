"""The gallery: who may put vectors in, who may search them, and why not. Stores and HTTP are elsewhere.

Every vector passes the same questions before a store sees it: is its space here, is its model a member of it, was that
model's pipeline seen to work (handshake), may it be compared (same model, or a passing compatibility record), has it
the dimension of the space, is it finite and of unit norm.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.browsing import partition_of
from samespace.cloud.gallery.evidence import Evidence
from samespace.cloud.gallery.filling import Filling
from samespace.cloud.gallery.handshake import HandshakePolicy
from samespace.cloud.gallery.indexes.base import Filter, Hit, Place, VectorIndex
from samespace.cloud.gallery.journal import Journal, journal_beside
from samespace.cloud.gallery.membership import Claim, Introduction, Membership
from samespace.cloud.gallery.reception import Admitted, Reception
from samespace.cloud.gallery.references import challenge_set, make_references
from samespace.cloud.gallery.registry import SERVING, Challenge, RegisteredRecord, Registry
from samespace.cloud.gallery.shelf import Shelf, shelf_beside
from samespace.cloud.gallery.successor import SuccessorShelf
from samespace.cloud.gallery.tokens import TokenMaker
from samespace.cloud.gallery.upgrading import Upgrading
from samespace.cloud.gallery.vectors import checked_vectors
from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import ConfigError
from samespace.sdk.gallery.wire import UnknownTokenError
from samespace.sdk.gallery.wire_admin import UpgradeRefusedError
from samespace.sdk.identity import SpaceRecord

__all__ = ["Admitted", "Gallery", "SpaceSummary", "partition_of"]


@dataclass(frozen=True)
class SpaceSummary:
    """A space and how many items its serving model has in it."""

    space: SpaceRecord
    serving_model_id: str
    items: int


class Gallery(Filling):
    """All spaces of one registry and one vector index. A context manager; safe to share between threads.

    Args:
        registry: models, records, aliases, challenges.
        index: the vectors.
        policy: how handshakes are held.
        secret: signs tokens; by default new, so that a restart makes every device shake hands again.
        shelf: small documents; by default beside the registry.
        journal: changes and answers; by default beside the registry.
        clock: for tests.

    Attributes:
        policy: how handshakes are held.
        shelf: small documents beside the registry: references, API keys.
        registry: models, records, aliases, challenges, as they are kept.
        members: which models belong to which space, and what may be compared; introduce models and records there.
        upgrades: successors of serving models.
    """

    def __init__(
        self,
        registry: Registry,
        index: VectorIndex,
        *,
        policy: HandshakePolicy | None = None,
        secret: bytes | None = None,
        shelf: Shelf | None = None,
        journal: Journal | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.shelf = shelf if shelf is not None else shelf_beside(registry)
        successors = SuccessorShelf(self.shelf)
        members = Membership(registry, successors)
        super().__init__(members, index, journal if journal is not None else journal_beside(registry))
        self.registry = registry
        self.policy = policy or HandshakePolicy()
        self.upgrades = Upgrading(self, registry, index, self.journal)
        self._tokens = TokenMaker(secret or secrets.token_bytes(32), clock)
        self._reception = Reception(registry, self.members, self.shelf, self._tokens, self.policy, clock)
        for space, serving in self._served():
            self._index.prepare(serving, space.dim)

    def found(self, evidence: Evidence, images: Sequence[bytes], embeddings: npt.NDArray[np.floating]) -> Introduction:
        """Found a space; see :meth:`Membership.found`."""
        introduction = self.members.found(evidence, images, embeddings)
        self._index.prepare(introduction.serving_model_id, evidence.manifest.space.dim)
        return introduction

    def spaces(self, tenant: str = "") -> tuple[SpaceSummary, ...]:
        """What is here, with the items of a tenant; asks the store, so it also says whether the store answers."""
        self.registry.ping()
        summaries = []
        for space, serving in self._served():
            summaries.append(SpaceSummary(space, serving, self.layers(tenant, space.space_id).count()))
        return tuple(summaries)

    def ping(self) -> None:
        """Return when the store answers.

        Raises:
            GalleryUnavailableError: it does not.
        """
        self.registry.ping()

    def record(self, query_id: str, gallery_model_id: str) -> RegisteredRecord | None:
        """The record that counts for a pair."""
        return self.registry.record(query_id, gallery_model_id)

    def told_device(self, challenge: str) -> bool:
        """Whether who asked for this challenge said what kind of device it is; False for what is no challenge."""
        try:
            return bool(self._tokens.read("challenge", challenge)["claim"]["device"])
        except UnknownTokenError:
            return False

    def challenge(self, claim: Claim) -> tuple[str, tuple[bytes, ...]]:
        """An opaque challenge and its pictures.

        Raises:
            UnknownModelError: the model, or this artifact of it, was not introduced.
            SpaceMismatchError: the space is not here, or the model may not be compared with its vectors.
        """
        return self._reception.challenge(claim)

    def answer(self, challenge: str, embeddings: npt.NDArray[np.floating], tenant: str | None = None) -> Admitted:
        """Judge a device's ``(n, d)`` embeddings of the challenge's pictures; errors as :meth:`Reception.answer`."""
        return self._reception.answer(challenge, embeddings, tenant)

    def admitted(self, token: str) -> Claim:
        """Who holds this token.

        Raises:
            UnknownTokenError: nobody.
        """
        return Claim(**self._tokens.read("admission", token)["claim"])

    def refer(self, bundle: Bundle) -> tuple[str, ...]:
        """Make the references of a bundle's artifacts, so that handshakes with them are judged by their own embeddings.

        Returns:
            The artifacts' ids.

        Raises:
            SpaceMismatchError: the bundle's space is not here.
            SignatureError: its signer is not trusted.
        """
        challenges = self._reception.pictures(self.members.serving(bundle.manifest.space_id))
        have = self._reception.references
        if all(have.get(a.artifact_id, challenge_set(challenges)) is not None for a in bundle.manifest.artifacts):
            return tuple(a.artifact_id for a in bundle.manifest.artifacts)
        references = make_references(bundle, challenges)
        for reference in references:
            have.put(reference)
        return tuple(reference.artifact_id for reference in references)

    def set_alias(self, space_id: str, name: str, model_id: str) -> None:
        """Let a name mean a model; ``serving`` is the one whose vectors answer searches.

        Raises:
            SpaceMismatchError, UnknownModelError: as :meth:`Membership.set_alias`.
            ConfigError: to serve, a model needs a reference: devices are compared with it.
            UpgradeRefusedError: an upgrade is under way; it is promoted, or rolled back.
        """
        space = self.members.space(space_id)
        if name == SERVING and self.members.successor(space_id, now=True) is not None:
            raise UpgradeRefusedError(
                f"an upgrade of the space {space_id} is under way: promote it or roll it back, and finish it, instead"
            )
        if name == SERVING and model_id != (before := self.members.serving(space_id, now=True)):
            self._prepare_to_serve(space, model_id, before)
        self.members.set_alias(space_id, name, model_id)

    def _prepare_to_serve(self, space: SpaceRecord, model_id: str, before: str) -> None:
        pictures, model = self._reception.pictures(before), self.registry.model(model_id)
        chosen = challenge_set(pictures)
        if model is None or model.space_id != space.space_id:
            return  # the members' own refusal says so
        self._index.prepare(model_id, space.dim)
        if challenge_set(self.registry.challenges(model_id)) == chosen:
            return
        found = (self._reception.references.get(artifact.artifact_id, chosen) for artifact in model.artifacts)
        reference = next((reference for reference in found if reference is not None), None)
        if reference is None:
            raise ConfigError(
                f"the model {model_id} cannot serve: it has no reference here; start the service with its bundle "
                "(samespace gallery serve --bundle)"
            )
        rows = zip(pictures, reference.best, strict=True)
        self.registry.put_challenges(model_id, tuple(Challenge(c.name, c.image, row) for c, row in rows))

    def aliases(self, space_id: str) -> dict[str, str]:
        """The serving alias of a space."""
        self.members.space(space_id)
        return {SERVING: self.members.serving(space_id, now=True)}

    def search(
        self,
        claim: Claim,
        space_id: str,
        model_id: str,
        queries: npt.NDArray[np.floating],
        k: int,
        *,
        exact: bool = False,
        where: Filter | None = None,
        after: Place | None = None,
    ) -> tuple[str, list[list[Hit]]]:
        """The model whose vectors were searched (first), and for each query its ``k`` nearest items, nearest first.

        Args:
            where: only items whose metadata match.
            after: of one query: only hits behind this place.

        Raises:
            SpaceMismatchError: another space, another dimension, or no passing compatibility record (any more).
            EmbeddingError: NaN, infinite, zero or not of unit norm.
            ConfigError: a place for more than one query.
        """
        space, layers = self._same(claim, space_id, model_id), self.searched(claim)
        rows = checked_vectors(queries, space.dim, space_id, lambda row: f"query {row}")
        if after is not None and len(rows) != 1:
            raise ConfigError(f"pages are turned for one query at a time; got {len(rows)}")
        return layers.models[0], layers.search(rows, k, exact=exact, where=where or None, after=after)

    def close(self) -> None:
        """Give back what registry and index hold."""
        self._index.close()
        self.registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _served(self) -> list[tuple[SpaceRecord, str]]:
        """The spaces with their serving models, without one whose founding was cut short."""
        aliases = [(space, self.registry.alias(space.space_id, SERVING)) for space in self.registry.spaces()]
        return [(space, serving) for space, serving in aliases if serving is not None]
