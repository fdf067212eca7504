"""Putting vectors into a gallery and taking them out: only the serving model's, by a device that passed its handshake."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.browsing import Browsing
from samespace.cloud.gallery.indexes.base import Metadata, StoredItem, VectorIndex
from samespace.cloud.gallery.journal import Journal
from samespace.cloud.gallery.membership import Claim, Membership
from samespace.cloud.gallery.vectors import checked_vectors
from samespace.sdk.errors import ConfigError, HandshakeRefusedError, SpaceMismatchError
from samespace.sdk.identity import SpaceRecord

__all__ = ["Filling"]


class Filling(Browsing):
    """What changes a :class:`~samespace.cloud.gallery.gallery.Gallery`.

    Args:
        members: which model serves which space.
        index: the vectors.
        journal: notes each change, in one transaction with it.

    Attributes:
        journal: of changes, and of answers to requests that may be repeated.
    """

    def __init__(self, members: Membership, index: VectorIndex, journal: Journal) -> None:
        super().__init__(members, index)
        self.journal = journal

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
        space, serving = self._same(claim, space_id, model_id), self.members.serving(claim.space_id, now=True)
        _require_verified(claim)
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
            partition = self._partition(claim.tenant, claim.space_id, serving)
            with self.journal.atomic():
                self._index.upsert(partition, items)
                self.journal.write(partition, ids, "put")
        return tuple(ids)

    def delete(self, claim: Claim, ids: Sequence[str]) -> int:
        """Forget items; how many there were.

        Raises:
            SpaceMismatchError: only the serving model's holder may delete, as only it may add.
        """
        serving = self.members.serving(claim.space_id, now=True)
        _require_verified(claim)
        if claim.model_id != serving:
            raise SpaceMismatchError(
                f"the items were made by the model {serving}; {claim.model_id} may search them, not delete them"
            )
        partition = self._partition(claim.tenant, claim.space_id, serving)
        with self.journal.atomic():
            there = self._index.known(partition, ids)
            gone = self._index.delete(partition, sorted(there))
            if gone:
                self.journal.write(partition, sorted(there), "delete")
        return gone

    def replicated(self, claim: Claim) -> tuple[str, str]:
        """The model that serves at this moment, and where the tenant's vectors of it lie; for one answer, they must not part.

        Raises:
            SpaceMismatchError: no record says that the claim's model may search that model's vectors.
        """
        serving = self.members.serving(claim.space_id, now=True)
        self.members.comparable(claim, serving)
        return serving, self._partition(claim.tenant, claim.space_id, serving)

    def items_in(self, partition: str, ids: Sequence[str]) -> dict[str, StoredItem]:
        """Those of the items that are there."""
        return self._index.get(partition, ids)

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


def _require_verified(claim: Claim) -> None:
    if not claim.verified:
        raise HandshakeRefusedError(
            "this device did not pass its handshake and was let in with a warning: it may search, not change the gallery; run "
            "'samespace check' on it"
        )
