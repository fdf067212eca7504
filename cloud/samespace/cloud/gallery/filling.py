"""Putting vectors into a gallery and taking them out: only the serving model's, by a device that passed its handshake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.browsing import Browsing
from samespace.cloud.gallery.indexes.base import Metadata, StoredItem, VectorIndex
from samespace.cloud.gallery.journal import Journal
from samespace.cloud.gallery.layers import Layer
from samespace.cloud.gallery.membership import Claim, Membership
from samespace.cloud.gallery.vectors import checked_vectors
from samespace.sdk.errors import ConfigError, HandshakeRefusedError, SpaceMismatchError
from samespace.sdk.gallery.wire_admin import UpgradeRefusedError
from samespace.sdk.identity import SpaceRecord, digest

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
        space = self._same(claim, space_id, model_id)
        _require_verified(claim)
        rows = checked_vectors(
            vectors, space.dim, space.space_id, lambda row: f"item {ids[row]!r}" if row < len(ids) else f"vector {row}"
        )
        if not len(ids) == len(rows) == len(metadata):
            raise ConfigError(f"{len(ids)} ids, {len(rows)} vectors, {len(metadata)} metadata: one of each per item")
        items = [StoredItem(*triple) for triple in zip(ids, rows, map(dict, metadata), strict=True)]
        with self._writing(claim) as (first, *others):
            if model_id != first.model_id:
                raise SpaceMismatchError(
                    f"this gallery is made of vectors of the model {first.model_id}, not of {model_id}: {model_id} may search "
                    "it, not fill it; embed with the bundle of the serving model"
                )
            if items:
                self._hold(first, *others)
                self._index.upsert(first.partition, items)
                self.journal.write(first.partition, ids, "put")
                # What another model made of the picture that an item had before is wrong now.
                for layer in others:
                    self._forget(layer, ids)
        self.left_over.forget()
        return tuple(ids)

    def delete(self, claim: Claim, ids: Sequence[str]) -> int:
        """Forget items; how many there were.

        Raises:
            SpaceMismatchError: only the serving model's holder may delete, as only it may add.
        """
        _require_verified(claim)
        with self._writing(claim) as layers:
            if claim.model_id != layers[0].model_id:
                raise SpaceMismatchError(
                    f"the items were made by the model {layers[0].model_id}; {claim.model_id} may search them, not delete them"
                )
            self._hold(*layers)
            return len(set().union(*(self._forget(layer, ids) for layer in layers)))

    def backfill(
        self, claim: Claim, ids: Sequence[str], vectors: npt.NDArray[np.floating], seen: Sequence[str]
    ) -> tuple[str, ...]:
        """Keep what the claimed model, one of the two of an upgrade, makes of items that the other one embedded.

        Args:
            seen: SHA-256 of the other model's vector of each item. One that was replaced or deleted since is left out, and
                so is one that is there already.

        Returns:
            The ids that were kept; they are on disk.

        Raises:
            UpgradeRefusedError: no upgrade is under way, or it is of other models.
            EmbeddingError, SpaceMismatchError, ConfigError: as :meth:`add`.
        """
        space = self.members.space(claim.space_id)
        _require_verified(claim)
        self._backfilled(claim)
        if not len(ids) == len(vectors) == len(seen):
            raise ConfigError(f"{len(ids)} ids, {len(vectors)} vectors, {len(seen)} seen: one of each per item")
        rows = checked_vectors(vectors, space.dim, space.space_id, lambda row: f"item {ids[row]!r}")
        with self._writing(claim):
            target, source = self._backfilled(claim)
            # First nobody may replace an item any more, then it is looked at.
            self._hold(target, source)
            there, mine = self._index.get(source.partition, ids), self._index.known(target.partition, ids)
            items = [
                StoredItem(item_id, row, there[item_id].metadata)
                for item_id, row, told in zip(ids, rows, seen, strict=True)
                if item_id in there and item_id not in mine and digest(there[item_id].vector.tobytes()) == told
            ]
            if items:
                self._index.upsert(target.partition, items)
                self.journal.write(target.partition, [item.item_id for item in items], "put")
        return tuple(item.item_id for item in items)

    def left(self, claim: Claim, after: str, limit: int, *, oldest: bool = False) -> tuple[str, list[StoredItem], str | None]:
        """Items that the claimed model has not embedded yet: the other model, its items, and where to go on, None at the end.

        Args:
            oldest: in the order in which they were added; by id without it.

        Raises:
            ConfigError: a place that no answer named.
            UpgradeRefusedError: as :meth:`backfill`.
        """
        target, source = self._backfilled(claim)
        if oldest:
            if not (after or "0").isdecimal():
                raise ConfigError(f"after={after!r} is no place among items by age; take the one that the answer before had")
            entries = self.journal.read(source.partition, int(after or "0"), limit)
            there = self._index.get(source.partition, [entry.item_id for entry in entries if entry.kind == "put"])
            items = [there[entry.item_id] for entry in entries if entry.item_id in there]
            more = str(entries[-1].cursor) if len(entries) == limit else None
        else:
            items = self._index.scan(source.partition, after, limit)
            more = items[-1].item_id if len(items) == limit else None
        mine = self._index.known(target.partition, [item.item_id for item in items])
        return source.model_id, [item for item in items if item.item_id not in mine], more

    @contextmanager
    def _writing(self, claim: Claim) -> Iterator[tuple[Layer, ...]]:
        """One transaction, in which no upgrade is promoted, rolled back or finished; with the tenant's layers."""
        with self.journal.atomic():
            self.journal.share(claim.space_id)
            yield self.layers(claim.tenant, claim.space_id, now=True).layers

    def _backfilled(self, claim: Claim) -> tuple[Layer, Layer]:
        """The claimed model's layer, and the one that it is filled from."""
        successor = self.members.upgrade(claim.space_id)
        if claim.model_id not in successor.models:
            raise UpgradeRefusedError(
                f"the upgrade under way is from {successor.old_model_id} to {successor.new_model_id}; {claim.model_id} is "
                "neither"
            )
        both = (claim.model_id, successor.other(claim.model_id))
        target, source = (Layer(one, self._partition(claim.tenant, claim.space_id, one)) for one in both)
        return target, source

    def _hold(self, *layers: Layer) -> None:
        """Keep other writers out of several layers until the transaction ends, all in one order."""
        if len(layers) > 1:
            for partition in sorted(layer.partition for layer in layers):
                self.journal.hold(partition)

    def _forget(self, layer: Layer, ids: Sequence[str]) -> set[str]:
        """Which of the items a layer had; within a transaction."""
        there = self._index.known(layer.partition, ids)
        if there:
            self._index.delete(layer.partition, sorted(there))
            self.journal.write(layer.partition, sorted(there), "delete")
        return there

    def replicated(self, claim: Claim) -> tuple[str, str]:
        """The model that serves at this moment, and where the tenant's vectors of it lie; for one answer, they must not part.

        Raises:
            SpaceMismatchError: no record says that the claim's model may search that model's vectors.
            UpgradeRefusedError: some items are embedded by another model alone: a copy of these would not be all.
        """
        first, *others = self.layers(claim.tenant, claim.space_id, now=True).layers
        self.members.comparable(claim, first.model_id)
        if any(self.left_over.count(layer.partition, first.partition) for layer in others):
            raise UpgradeRefusedError(
                "an upgrade is under way, and some items are not embedded by the serving model yet; copies on devices stay as "
                "they are until the backfill is complete"
            )
        return first.model_id, first.partition

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
