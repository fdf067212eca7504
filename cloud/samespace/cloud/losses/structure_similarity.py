"""Structure similarity: lie between the anchors of the partner's gallery, part by part, as the partner's embedding does."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Scale, Shape

__all__ = ["StructureSimilarity", "spherical_kmeans"]

#: More of them move the centroids little, and cost time at the first step.
_ROWS_PER_CENTROID = 64

Width = Annotated[int, Field(ge=2)]
Anchors = Annotated[int, Field(ge=2)]
Rounds = Annotated[int, Field(ge=0)]


class StructureSimilarity(CompatibilityLoss):
    r"""``mean_{i,j} KL(softmax(s * A_j g_i[j]) || softmax(s * A_j e_i[j]))`` over the sub-vectors j of an embedding.

    e_i[j] and g_i[j] are the j-th runs of ``part`` coordinates, each normalised; the rows of A_j are the anchors of that run:
    unit centroids of the gallery's sub-vectors, as in a product quantiser. SSP (Wu et al., "Structure Similarity Preservation
    Learning for Asymmetric Image Retrieval", arXiv 2403.00648), constants from its published code: 256 anchors, s = 10,
    sub-vectors of 32 to 64 coordinates of 2,048, where our embeddings are shorter; there anchors are Euclidean centroids
    normalised afterwards, here the k-means itself is by cosine. Needs no labels.

    Anchors are made of the partner's gallery at the first forward in training mode, by a k-means without chance (it does not
    touch torch's random state), and are kept in buffers, so that a resumed run goes on with the same ones. Since every
    sub-vector is normalised by itself, its anchors are the same at every prefix width that holds it whole; a sub-vector that a
    prefix cuts is left out there, and with it the last coordinates of a dimension that ``part`` does not divide. The term is 0
    for a prefix narrower than one sub-vector.

    Args:
        shape: dimension of the anchors.
        part: coordinates of a sub-vector, at most all of them.
        anchors: of each sub-vector; at most the gallery's rows.
        scale: s, the inverse temperature of the soft assignments.
        rounds: of k-means.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING, Need.GALLERY})

    anchors: Tensor
    used: Tensor

    def __init__(
        self, shape: Shape, *, part: Width = 8, anchors: Anchors = 256, scale: Scale = 10.0, rounds: Rounds = 10
    ) -> None:
        super().__init__()
        self.scale, self.rounds = scale, rounds
        self.part = min(part, shape.dim)
        parts = shape.dim // self.part
        self.register_buffer("anchors", torch.zeros(parts, anchors, self.part))
        # Of each sub-vector, how many anchors there are; 0 before they are made.
        self.register_buffer("used", torch.zeros(parts, dtype=torch.int64))

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        parts = min(batch.embedding.shape[1] // self.part, len(self.anchors))
        if not parts:
            return batch.embedding.sum() * 0
        anchors = self._anchors(parts, partner)
        target = self._log_assignment(partner.embedding, anchors)
        found = self._log_assignment(batch.embedding, anchors)
        # Exact equality of the two is 0, in whatever order the sums are taken.
        return (target.exp() * (target - found)).sum(-1).mean()

    def _log_assignment(self, rows: Tensor, anchors: Tensor) -> Tensor:
        """``(n, d)`` -> ``(parts, n, anchors)``: log of the soft assignment of each sub-vector."""
        return (self.scale * self._split(rows, len(anchors)).transpose(0, 1) @ anchors.mT).log_softmax(-1)

    def _split(self, rows: Tensor, parts: int) -> Tensor:
        """``(n, d)`` -> ``(n, parts, part)``, unit sub-vectors."""
        return F.normalize(rows[:, : parts * self.part].unflatten(1, (parts, self.part)), dim=2)

    @torch.no_grad()
    def _anchors(self, parts: int, partner: Partner) -> Tensor:
        """``(parts, k, part)``: the stored ones, or new ones, which are stored in training mode."""
        used = self.used[:parts].tolist()
        if not all(used):
            gallery = self._split(partner.gallery.embedding, parts)
            made = [
                self.anchors[j, : used[j]] if used[j] else spherical_kmeans(gallery[:, j], self.anchors.shape[1], self.rounds)
                for j in range(parts)
            ]
            anchors = torch.stack([rows.to(self.anchors) for rows in made])
            if not self.training:
                return anchors
            self.anchors[:parts, : anchors.shape[1]] = anchors
            self.used[:parts] = anchors.shape[1]
            used = self.used[:parts].tolist()
        # A copy: a wider prefix of the same step may add anchors before this one's gradient is taken.
        return self.anchors[:parts, : used[0]].clone()


def spherical_kmeans(rows: Tensor, count: int, rounds: int) -> Tensor:
    """``(n, d)`` unit rows -> ``(min(count, n), d)`` float64 unit centroids on the CPU; no chance is involved.

    Lloyd's algorithm by cosine (Dhillon & Modha, Machine Learning 42, 2001), started from rows spread evenly over the set's
    order; of a large set it looks at 64 rows a centroid, spread likewise. A centroid that nothing is nearest to stays where it
    is.
    """
    count = min(count, len(rows))
    seen = min(len(rows), _ROWS_PER_CENTROID * count)
    points = rows[torch.arange(seen, device=rows.device) * len(rows) // seen].detach().cpu().double()
    centroids = points[torch.arange(count) * len(points) // count]
    for _ in range(rounds):
        nearest = (points @ centroids.T).argmax(1)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        lengths = sums.norm(dim=1, keepdim=True)
        centroids = torch.where(lengths > 1e-12, sums / lengths.clamp(min=1e-12), centroids)
    return centroids
