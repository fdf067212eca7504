"""The gallery: who may put vectors in, who may search them, and why not. Stores and HTTP are elsewhere.

Every vector passes the same questions before a store sees it: is its space here, is its model a member of it, was that
model's pipeline seen to work (handshake), may it be compared (same model, or a passing compatibility record), has it
the dimension of the space, is it finite and of unit norm.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.evidence import Evidence
from samespace.cloud.gallery.handshake import HandshakePolicy, Judgement, judge_by_record, judge_same_model
from samespace.cloud.gallery.indexes.base import Hit, Metadata, StoredItem, VectorIndex
from samespace.cloud.gallery.membership import MIN_CHALLENGES, Claim, Introduction, Membership
from samespace.cloud.gallery.registry import SERVING, Registry
from samespace.cloud.gallery.tokens import TokenMaker
from samespace.cloud.gallery.vectors import checked_vectors
from samespace.sdk.errors import ConfigError, GalleryError, HandshakeRefusedError, SpaceMismatchError
from samespace.sdk.identity import SpaceRecord

__all__ = ["Admitted", "Gallery", "SpaceSummary"]


@dataclass(frozen=True)
class Admitted:
    """A passed handshake."""

    token: str
    seconds: float
    claim: Claim
    serving_model_id: str
    judgement: Judgement


@dataclass(frozen=True)
class SpaceSummary:
    """A space and how many items its serving model has in it."""

    space: SpaceRecord
    serving_model_id: str
    items: int


class Gallery:
    """All spaces of one registry and one vector index. A context manager; safe to share between threads.

    Args:
        registry: models, records, aliases, challenges.
        index: the vectors.
        policy: how handshakes are held.
        secret: signs tokens; by default new, so that a restart makes every device shake hands again.
        clock: for tests.

    Attributes:
        members: which models belong to which space, and what may be compared; introduce models and records there.
    """

    def __init__(
        self,
        registry: Registry,
        index: VectorIndex,
        *,
        policy: HandshakePolicy | None = None,
        secret: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.members = Membership(registry)
        self._registry = registry
        self._index = index
        self._policy = policy or HandshakePolicy()
        self._tokens = TokenMaker(secret or secrets.token_bytes(32), clock)
        self._chance = random.SystemRandom()
        for space, serving in self._served():
            self._index.prepare(serving, space.dim)

    def found(self, evidence: Evidence, images: Sequence[bytes], embeddings: npt.NDArray[np.floating]) -> Introduction:
        """Found a space; see :meth:`Membership.found`."""
        introduction = self.members.found(evidence, images, embeddings)
        self._index.prepare(introduction.serving_model_id, evidence.manifest.space.dim)
        return introduction

    def spaces(self) -> tuple[SpaceSummary, ...]:
        """What is here; asks the store, so it also says whether the store answers."""
        self._registry.ping()
        return tuple(SpaceSummary(space, serving, self._index.count(serving)) for space, serving in self._served())

    def challenge(self, claim: Claim) -> tuple[str, tuple[bytes, ...]]:
        """An opaque challenge and its pictures.

        Raises:
            UnknownModelError: the model, or this artifact of it, was not introduced.
            SpaceMismatchError: the space is not here, or the model may not be compared with its vectors.
        """
        self.members.member(claim)
        serving = self.members.serving(claim.space_id)
        self.members.comparable(claim, serving)
        challenges = self._registry.challenges(serving)
        if len(challenges) < MIN_CHALLENGES:
            raise GalleryError(f"the model {serving} has no challenge pictures in this registry; found the space again")
        chosen = self._chance.sample(challenges, min(self._policy.pictures, len(challenges)))
        content = {"claim": asdict(claim), "serving": serving, "names": [challenge.name for challenge in chosen]}
        return self._tokens.make("challenge", content, self._policy.answer_seconds), tuple(c.image for c in chosen)

    def answer(self, challenge: str, embeddings: npt.NDArray[np.floating]) -> Admitted:
        """Judge a device's ``(n, d)`` embeddings of the challenge's pictures.

        Raises:
            HandshakeRefusedError: they do not fit; says how far off they are and, where it can be told, why.
            EmbeddingError, SpaceMismatchError: they are no embeddings of the space.
        """
        content = self._tokens.read("challenge", challenge)
        claim, serving = Claim(**content["claim"]), content["serving"]
        space, model = self.members.space(claim.space_id), self.members.member(claim)
        answer = checked_vectors(embeddings, space.dim, space.space_id, lambda row: f"answer {row}")
        by_name = {challenge.name: challenge for challenge in self._registry.challenges(serving)}
        if len(answer) != len(content["names"]) or not set(content["names"]) <= by_name.keys():
            raise HandshakeRefusedError(
                f"the challenge has {len(content['names'])} pictures, the answer {len(answer)} embeddings; embed each "
                "picture of the challenge, in its order"
            )
        expected = np.stack([by_name[name].embedding for name in content["names"]])
        record = self.members.comparable(claim, serving)
        if record is None:
            artifact = model.artifact(claim.artifact_id)
            judgement = judge_same_model(answer, expected, model.gates, artifact.precision if artifact else "fp32")
        else:
            judgement = judge_by_record(answer, expected, record.report, self._policy)
        if not judgement.accepted:
            raise HandshakeRefusedError(
                f"handshake refused for the artifact {claim.artifact_id[:12]} of {claim.model_id} in {claim.runtime}: "
                f"{judgement.reason}. Run 'samespace check' on the device; it names the fault"
            )
        token = self._tokens.make("admission", {"claim": asdict(claim)}, self._policy.token_seconds)
        return Admitted(token, self._policy.token_seconds, claim, serving, judgement)

    def admitted(self, token: str) -> Claim:
        """Who holds this token.

        Raises:
            UnknownTokenError: nobody.
        """
        return Claim(**self._tokens.read("admission", token)["claim"])

    def add(
        self,
        claim: Claim,
        space_id: str,
        model_id: str,
        ids: Sequence[str],
        vectors: npt.NDArray[np.floating],
        metadata: Sequence[Metadata],
    ) -> tuple[str, ...]:
        """Keep vectors of the serving model; all of them or none. An id that is there is replaced.

        Returns:
            The ids; they are on disk.

        Raises:
            SpaceMismatchError: another space, another model than the serving one, or another dimension.
            EmbeddingError: NaN, infinite, zero or not of unit norm.
            ConfigError: not as many ids as vectors.
        """
        space, serving = self._same(claim, space_id, model_id), self.members.serving(claim.space_id)
        if model_id != serving:
            raise SpaceMismatchError(
                f"this gallery is made of vectors of the model {serving}, not of {model_id}: {model_id} may search "
                "it, not fill it; embed with the bundle of the serving model"
            )
        rows = checked_vectors(
            vectors, space.dim, space.space_id, lambda row: f"item {ids[row]!r}" if row < len(ids) else f"vector {row}"
        )
        if not len(ids) == len(rows) == len(metadata):
            raise ConfigError(f"{len(ids)} ids, {len(rows)} vectors, {len(metadata)} metadata: one of each per item")
        if ids:
            items = [StoredItem(*triple) for triple in zip(ids, rows, map(dict, metadata), strict=True)]
            self._index.upsert(serving, items)
        return tuple(ids)

    def search(
        self,
        claim: Claim,
        space_id: str,
        model_id: str,
        queries: npt.NDArray[np.floating],
        k: int,
        *,
        exact: bool = False,
    ) -> tuple[str, list[list[Hit]]]:
        """The model whose vectors were searched, and for each query its ``k`` nearest items, nearest first.

        Raises:
            SpaceMismatchError: another space, another dimension, or no passing compatibility record (any more).
            EmbeddingError: NaN, infinite, zero or not of unit norm.
        """
        space, serving = self._same(claim, space_id, model_id), self.members.serving(claim.space_id)
        self.members.comparable(claim, serving)
        rows = checked_vectors(queries, space.dim, space.space_id, lambda row: f"query {row}")
        return serving, self._index.search(serving, rows, k, exact=exact)

    def get(self, claim: Claim, item_id: str) -> tuple[str, StoredItem] | None:
        """The serving model and its item of that id."""
        serving = self.members.serving(claim.space_id)
        item = self._index.get(serving, [item_id]).get(item_id)
        return None if item is None else (serving, item)

    def known(self, claim: Claim, ids: Sequence[str]) -> set[str]:
        """Which of these items the serving model has."""
        return self._index.known(self.members.serving(claim.space_id), ids)

    def delete(self, claim: Claim, ids: Sequence[str]) -> int:
        """Forget items; how many there were.

        Raises:
            SpaceMismatchError: only the serving model's holder may delete, as only it may add.
        """
        serving = self.members.serving(claim.space_id)
        if claim.model_id != serving:
            raise SpaceMismatchError(
                f"the items were made by the model {serving}; {claim.model_id} may search them, not delete them"
            )
        return self._index.delete(serving, ids)

    def close(self) -> None:
        """Give back what registry and index hold."""
        self._index.close()
        self._registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _served(self) -> list[tuple[SpaceRecord, str]]:
        """The spaces with their serving models, without one whose founding was cut short."""
        aliases = [(space, self._registry.alias(space.space_id, SERVING)) for space in self._registry.spaces()]
        return [(space, serving) for space, serving in aliases if serving is not None]

    def _same(self, claim: Claim, space_id: str, model_id: str) -> SpaceRecord:
        """The vectors are of the space and the model that shook hands."""
        if space_id != claim.space_id:
            raise SpaceMismatchError(
                f"the vectors are of the space {space_id}, the handshake was for {claim.space_id}: they cannot be "
                "compared; shake hands with a bundle of that space"
            )
        if model_id != claim.model_id:
            raise SpaceMismatchError(
                f"the vectors are of the model {model_id}, the handshake was for {claim.model_id}; shake hands with "
                "that model's bundle"
            )
        return self.members.space(space_id)
