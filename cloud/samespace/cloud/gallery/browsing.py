"""Reading a tenant's part of a gallery: items, samples, and where in the index it lies."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.drift import Bucket
from samespace.cloud.gallery.indexes.base import Hit, StoredItem, VectorIndex
from samespace.cloud.gallery.membership import Claim, Membership
from samespace.sdk.identity import canonical_json, digest

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
        self._prepared: set[str] = set()
        self._sampled: dict[str, tuple[float, npt.NDArray[np.float32] | None]] = {}

    def get(self, claim: Claim, item_id: str) -> tuple[str, StoredItem] | None:
        """The serving model and its item of that id."""
        serving = self.members.serving(claim.space_id)
        item = self._index.get(self._partition(claim.tenant, claim.space_id, serving), [item_id]).get(item_id)
        return None if item is None else (serving, item)

    def known(self, claim: Claim, ids: Sequence[str]) -> set[str]:
        """Which of these items the serving model has."""
        return self._index.known(self._partition(claim.tenant, claim.space_id, self.members.serving(claim.space_id)), ids)

    def scan(self, claim: Claim, after: str = "", limit: int = 1024) -> tuple[str, list[StoredItem]]:
        """The serving model, and up to ``limit`` items whose ids come after ``after``, by id."""
        serving = self.members.serving(claim.space_id)
        return serving, list(self._index.scan(self._partition(claim.tenant, claim.space_id, serving), after, limit))

    def search_by_ids(
        self, claim: Claim, ids: Sequence[str], k: int, *, exact: bool = False
    ) -> tuple[str, list[list[Hit]] | str]:
        """The serving model, and for each of these items its ``k`` nearest; or the first id that is not there."""
        serving = self.members.serving(claim.space_id)
        self.members.comparable(claim, serving)
        partition = self._partition(claim.tenant, claim.space_id, serving)
        items = self._index.get(partition, ids)
        absent = next((item_id for item_id in ids if item_id not in items), None)
        if absent is not None or not ids:
            return serving, [] if absent is None else absent
        rows = np.stack([items[item_id].vector for item_id in ids])
        return serving, self._index.search(partition, rows, k, exact=exact)

    def stored(self, claim: Claim, ids: Iterable[str]) -> dict[str, StoredItem]:
        """Those of the items that are there."""
        partition = self._partition(claim.tenant, claim.space_id, self.members.serving(claim.space_id))
        return self._index.get(partition, list(ids))

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
