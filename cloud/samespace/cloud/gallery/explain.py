"""Why an item is a hit: its score beside the gallery's, beside the record of the two models, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.indexes.base import Hit, StoredItem
from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.registry import RegisteredRecord
from samespace.sdk.gallery.ranking import cosine_scores
from samespace.sdk.gallery.wire_admin import Explanation, PairInfo

__all__ = ["explained", "pair_info"]

#: Coordinates that are named.
_STRONGEST = 5


def pair_info(claim: Claim, serving: str, entry: RegisteredRecord | None) -> PairInfo:
    """Why the claim's vectors may be compared with the gallery's."""
    report = entry.record.report if entry is not None else {}
    cosine, separation = report.get("cosine", {}), report.get("separation", {})
    return PairInfo(
        query_model_id=claim.model_id,
        gallery_model_id=serving,
        verdict=entry.record.verdict if entry is not None else "same model",
        measured_at=entry.record.measured_at if entry is not None else None,
        signer=entry.signer if entry is not None else None,
        separation=_number(separation, "value"),
        expected_cosine=_number(cosine, "mean"),
        expected_spread=_number(cosine, "std"),
    )


def explained(
    query: npt.NDArray[np.float32],
    hits: Sequence[Hit],
    items: dict[str, StoredItem],
    sample: npt.NDArray[np.float32],
    pair: PairInfo,
) -> tuple[Explanation, ...]:
    """Explain the hits of one ``(d,)`` query.

    Args:
        items: the hits' vectors, by id; one that was deleted meanwhile is left out.
        sample: ``(n, d)`` of the gallery.
    """
    others = cosine_scores(query, sample)
    made = []
    for rank, hit in enumerate(hits):
        if hit.item_id not in items:
            continue
        parts = query.astype(np.float64) * items[hit.item_id].vector.astype(np.float64)
        order = np.argsort(-np.abs(parts), kind="stable")[:_STRONGEST]
        spread = pair.expected_spread
        made.append(
            Explanation(
                item_id=hit.item_id,
                rank=rank + 1,
                score=hit.score,
                margin=hit.score - hits[rank + 1].score if rank + 1 < len(hits) else 0.0,
                as_same_picture=(hit.score - pair.expected_cosine) / spread if pair.expected_cosine and spread else None,
                gallery_share=float((others < hit.score).mean()) if len(others) else 1.0,
                strongest=tuple((int(place), float(parts[place])) for place in order),
            )
        )
    return tuple(made)


def _number(report: object, name: str) -> float | None:
    value = report.get(name) if isinstance(report, dict) else None
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
