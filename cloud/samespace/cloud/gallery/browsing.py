"""Reading a tenant's part of a gallery: items, samples, and where in the index it lies."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.drift import Bucket
from samespace.cloud.gallery.indexes.base import Hit, StoredItem, VectorIndex
from samespace.cloud.gallery.layers import Layer, Layers, LeftOver
from samespace.cloud.gallery.membership import Claim, Membership
from samespace.sdk.identity import canonical_json, digest
from samespace.sdk.metrics import ScoreMap

__all__ = ["Browsing", "partition_of"]

#: How many vectors stand for a gallery, and for how many seconds.
_SAMPLE, _SAMPLED = 1024, 300.0


class Browsing:
    """What a :class:`~samespace.cloud.gallery.gallery.Gallery` answers without a judgement of vectors.

    Args:
        members: which model serves which space.
        index: the vectors.
    """

    def __init__(self, members: Membership, index: VectorIndex) -> None:
        self.members = members
        self._index = index
        self.left_over = LeftOver(index)
        self._prepared: set[str] = set()
        self._sampled: dict[str, tuple[float, npt.NDArray[np.float32] | None]] = {}

    def layers(self, tenant: str, space_id: str, *, now: bool = False) -> Layers:
        """All of a tenant's items, those of the serving model first.

        Args:
            now: for a write: whatever was true a moment ago.
        """
        models = self.members.generations(space_id, now=now)
        return Layers(self._index, [Layer(one, self._partition(tenant, space_id, one)) for one in models], self.left_over)

    def searched(self, claim: Claim) -> Layers:
        """The tenant's items as the claimed model may search them: the first layer is the one it fits best.

        Raises:
            SpaceMismatchError: it may search none.
        """
        models, successor = self.members.searchable(claim), self.members.successor(claim.space_id)
        first = Layer(models[0], self._partition(claim.tenant, claim.space_id, models[0]))
        if successor is None or len(models) == 1:
            return Layers(self._index, [first], self.left_over)
        scores = successor.merge.get("new" if first.model_id == successor.new_model_id else "old", ScoreMap())
        second = Layer(models[1], self._partition(claim.tenant, claim.space_id, models[1]), scores)
        return Layers(self._index, [first, second], self.left_over)

    def get(self, claim: Claim, item_id: str) -> tuple[str, StoredItem] | None:
        """The item of that id, with the model that embedded it."""
        return self.layers(claim.tenant, claim.space_id).get([item_id]).get(item_id)

    def known(self, claim: Claim, ids: Sequence[str]) -> set[str]:
        """Which of these items are there."""
        return self.layers(claim.tenant, claim.space_id).known(ids)

    def scan(self, claim: Claim, after: str = "", limit: int = 1024) -> list[tuple[str, StoredItem]]:
        """Up to ``limit`` items whose ids come after ``after``, by id, each with the model that embedded it."""
        return self.layers(claim.tenant, claim.space_id).scan(after, limit)

    def search_by_ids(
        self, claim: Claim, ids: Sequence[str], k: int, *, exact: bool = False
    ) -> tuple[str, list[list[Hit]] | str]:
        """The serving model, and for each of these items its ``k`` nearest; or the first id that is not there."""
        serving = self.members.serving(claim.space_id)
        self.members.searchable(claim)
        items = self.layers(claim.tenant, claim.space_id).get(ids)
        absent = next((item_id for item_id in ids if item_id not in items), None)
        if absent is not None:
            return serving, absent
        found: dict[str, list[Hit]] = {}
        for model_id in {model_id for model_id, _ in items.values()}:
            # An item is a query of the model that embedded it.
            mine = [item_id for item_id, (owner, _) in items.items() if owner == model_id]
            rows = np.stack([items[item_id][1].vector for item_id in mine])
            layers = self.searched(replace(claim, model_id=model_id, artifact_id=model_id))
            found |= zip(mine, layers.search(rows, k, exact=exact), strict=True)
        return serving, [found[item_id] for item_id in ids]

    def stored(self, claim: Claim, ids: Iterable[str]) -> dict[str, StoredItem]:
        """Those of the items that are there."""
        found = self.layers(claim.tenant, claim.space_id).get(ids)
        return {item_id: item for item_id, (_, item) in found.items()}

    def sample(self, claim: Claim) -> npt.NDArray[np.float32] | None:
        """``(n, d)`` some of the tenant's vectors, as they were some minutes ago at most; None for an empty gallery."""
        return self._samples(claim.tenant, claim.space_id)

    def sample_of(self, bucket: Bucket) -> npt.NDArray[np.float32] | None:
        """The same for a kind of client."""
        return self._samples(bucket.tenant, bucket.space_id)

    def _samples(self, tenant: str, space_id: str) -> npt.NDArray[np.float32] | None:
        partition = self._partition(tenant, space_id, self.members.serving(space_id))
        until, rows = self._sampled.get(partition, (0.0, None))
        if rows is None or time.monotonic() >= until:
            items = self._index.scan(partition, "", _SAMPLE)
            rows = np.stack([item.vector for item in items]) if items else None
            self._sampled[partition] = (time.monotonic() + _SAMPLED, rows)
        return rows

    def partition(self, claim: Claim) -> str:
        """What the claim's tenant's vectors of the serving model lie under in the index."""
        return self._partition(claim.tenant, claim.space_id, self.members.serving(claim.space_id, now=True))

    def _partition(self, tenant: str, space_id: str, serving: str) -> str:
        partition = partition_of(tenant, serving)
        if partition != serving and partition not in self._prepared:
            self._index.prepare(partition, self.members.space(space_id).dim)
            self._prepared.add(partition)
        return partition


def partition_of(tenant: str, model_id: str) -> str:
    """Where a tenant's vectors of a model lie in an index: an id in the form of a model's. So no filter that somebody may
    forget keeps tenants apart, and each has an index of its own.
    """
    return model_id if not tenant else "m-" + digest(canonical_json({"tenant": tenant, "model_id": model_id}))[:32]
