"""The retrieval layer against a running gallery service: what the device's own searches find there.

Only the nearest items come back from a service, so there is recall@k, neighbour overlap and negative flips, but no mAP, no
TAR and no chance level. Searches are exact, so that an approximate index does not blur the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.report import Comparison, Hits, RetrievalLayer, Settings, WorstCase
from samespace.sdk.errors import GalleryError
from samespace.sdk.metrics import bootstrap_mean, negative_flips, paired_bootstrap, relative_negative_flip_rate
from samespace.sdk.probes import ProbeSet

if TYPE_CHECKING:
    from samespace.sdk.gallery import GalleryClient

__all__ = ["ServiceGallery"]


class _Hit(Protocol):
    @property
    def item_id(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def metadata(self) -> dict[str, str | int | float | bool | None]: ...


class _Client(Protocol):
    """What this module needs of :class:`samespace.sdk.gallery.GalleryClient`."""

    @property
    def url(self) -> str: ...

    def search_batch(
        self, queries: Sequence[npt.NDArray[np.floating]], k: int = 10, *, exact: bool = False
    ) -> Sequence[Sequence[_Hit]]: ...


class ServiceGallery:
    """A gallery behind a service. Items tell their label in the metadatum ``label``.

    Args:
        client: that has shaken hands with the artifact under check.
        serving_model_id: whose vectors answer searches.
        items: how many the service has, if it says so.
    """

    def __init__(self, client: _Client, serving_model_id: str, items: int | None = None) -> None:
        self._client = client
        self.location = client.url
        self.model_id = serving_model_id
        self.items = items

    @classmethod
    def admitted(cls, client: GalleryClient) -> Self:
        """The gallery of a client whose embedder runs the artifact under check: the service must admit it first.

        Raises:
            GalleryUnavailableError: nobody answers.
            HandshakeRefusedError, SpaceMismatchError: the service refuses the artifact; says why.
        """
        admission = client.handshake()
        items = {state.space_id: state.items for state in client.health().spaces}
        return cls(client, admission.serving_model_id, items.get(admission.space_id))

    def measure(self, device: npt.NDArray[np.float32], probes: ProbeSet, settings: Settings) -> RetrievalLayer:
        """Search with the device's, the reference's and the cloud model's embeddings of the probes.

        Args:
            device: ``(n, d)`` float32 unit-norm.
            probes: references and labels.
            settings: seeds and sizes.

        Raises:
            GalleryError: the gallery is empty, or the service refuses.
        """
        k = max(settings.overlap_k, *settings.recall_k, 1)
        found = [self._client.search_batch(list(rows), k, exact=True) for rows in (device, probes.reference, probes.cloud)]
        count = min(len(hits) for side in found for hits in side)
        if not count:
            raise GalleryError(f"{self.location}: the gallery is empty; add items with 'samespace gallery add' and check again")
        overlap_k = min(settings.overlap_k, count)
        overlap = np.array(
            [
                len(_ids(mine, overlap_k) & _ids(theirs, overlap_k)) / overlap_k
                for mine, theirs in zip(found[0], found[1], strict=True)
            ]
        )
        common = RetrievalLayer(
            gallery=self.location,
            gallery_model_id=self.model_id,
            gallery_size=self.items,
            overlap_k=overlap_k,
            overlap=bootstrap_mean(overlap, settings.n_boot, settings.seed, settings.confidence),
            worst=WorstCase.lowest(overlap, settings.worst_cases),
            overlaps=tuple(overlap.tolist()),
        )
        has_labels = any("label" in hit.metadata for side in found for hits in side for hit in hits)
        if probes.probe_labels is None or not has_labels:
            return common
        ranks = [_ranks(side, probes.probe_labels) for side in found]
        return common.model_copy(update=_labelled(ranks, [k for k in settings.recall_k if k <= count], settings))

    def nearest(self, queries: npt.NDArray[np.float32], k: int) -> list[list[tuple[str, str | None, float]]]:
        """``(item id, label, cosine)`` of the k nearest items to each of ``(n, d)`` queries."""
        found = self._client.search_batch(list(queries), k, exact=True)
        return [[(hit.item_id, _label(hit), hit.score) for hit in hits] for hits in found]


def _label(hit: _Hit) -> str | None:
    label = hit.metadata.get("label")
    return None if label is None else str(label)


def _labelled(ranks: list[npt.NDArray[np.float64]], recall_k: list[int], settings: Settings) -> dict[str, object]:
    device, reference, cloud = ranks
    resampling = (settings.n_boot, settings.seed, settings.confidence)

    def compared(k: int) -> Comparison:
        return Comparison(
            device=bootstrap_mean(device <= k, *resampling),
            reference=bootstrap_mean(reference <= k, *resampling),
            difference=paired_bootstrap(device <= k, reference <= k, *resampling),
        )

    return {
        "queries": len(device),
        "recall": {k: compared(k) for k in recall_k},
        "cloud_recall": {k: bootstrap_mean(cloud <= k, *resampling) for k in recall_k},
        "negative_flips": bootstrap_mean(negative_flips(reference == 1, device == 1), *resampling),
        "relative_negative_flips": relative_negative_flip_rate(reference == 1, device == 1),
        "hits": Hits(
            probe=tuple(range(len(device))),
            device=tuple((device == 1).tolist()),
            reference=tuple((reference == 1).tolist()),
            cloud=tuple((cloud == 1).tolist()),
        ),
    }


def _ids(hits: Sequence[_Hit], k: int) -> set[str]:
    return {hit.item_id for hit in hits[:k]}


def _ranks(side: Sequence[Sequence[_Hit]], labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Rank of the first hit with the query's label; infinite where none of the hits has it."""
    return np.array(
        [
            next((rank for rank, hit in enumerate(hits, 1) if str(hit.metadata.get("label")) == label), np.inf)
            for hits, label in zip(side, labels, strict=True)
        ]
    )
