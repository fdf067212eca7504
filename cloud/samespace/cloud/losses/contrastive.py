"""Supervised contrastive learning across the spaces: own anchors, the partner's embeddings of the batch and of a queue."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Shape, prefix

__all__ = ["Contrastive"]

Temperature = Annotated[float, Field(gt=0)]
Length = Annotated[int, Field(ge=0)]

#: Label of a place in the queue that nothing was put into yet.
_EMPTY = -1


class Contrastive(CompatibilityLoss):
    r"""``mean_i mean_{p: y_p = y_i} -log (exp(e_i g_p / t) / (exp(e_i g_p / t) + sum_{n: y_n != y_i} exp(e_i g_n / t)))``.

    Supervised contrastive loss with the mean outside of the logarithm (Khosla et al., NeurIPS 2020, arXiv 2004.11362, eq. 2),
    across the spaces: the anchor e_i is the trained model's, all it is compared with are the partner's g, as in asymmetric
    metric learning (Budnik & Avrithis, CVPR 2021). Positives are the same image and all others of its class; they do not
    compete with one another: only images of other classes stand below the fraction line beside the positive itself.

    Candidates are the batch and the last ``queue`` partner embeddings before it (He et al., CVPR 2020): more negatives than a
    batch holds. A partner that stands still makes them exact; one that learns along, somewhat stale.

    With ``weigh = "credibility"``, a positive p counts for ``(1 + g_i g_p) / 2``: the less the partner sees in common between
    two images of a class, the less the trained model is bound by it (NCCL, Wu et al., AAAI 2022: embeddings of a poor old
    model).

    Args:
        shape: width of the queue.
        temperature: t, of cosines, > 0.
        queue: how many embeddings are kept; 0 compares within the batch only.
        weigh: positives.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING})

    queue: Tensor
    queue_labels: Tensor
    oldest: Tensor

    def __init__(
        self,
        shape: Shape,
        *,
        temperature: Temperature = 0.07,
        queue: Length = 2048,
        weigh: Literal["equal", "credibility"] = "equal",
    ) -> None:
        super().__init__()
        self.temperature, self.weigh = temperature, weigh
        self.register_buffer("queue", torch.zeros(queue, shape.dim))
        self.register_buffer("queue_labels", torch.full((queue,), _EMPTY, dtype=torch.int64))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        width = batch.embedding.shape[1]
        candidates = torch.cat([partner.embedding, prefix(self.queue, width)])
        labels = torch.cat([batch.labels, self.queue_labels])
        weights = (1 + partner.embedding @ candidates.T) / 2 if self.weigh == "credibility" else None
        loss = _contrast(batch.embedding @ candidates.T / self.temperature, batch.labels, labels, weights)
        if self.training and width == self.queue.shape[1]:
            self._enqueue(partner.embedding, batch.labels)
        return loss

    @torch.no_grad()
    def _enqueue(self, embedding: Tensor, labels: Tensor) -> None:
        """The batch takes the places of the oldest; of a batch longer than the queue its end is kept."""
        length = len(self.queue)
        if not length:
            return
        embedding, labels = embedding[-length:], labels[-length:]
        places = (self.oldest + torch.arange(len(labels), device=labels.device)) % length
        self.queue[places] = embedding
        self.queue_labels[places] = labels
        self.oldest.copy_((self.oldest + len(labels)) % length)


def _contrast(scores: Tensor, labels: Tensor, candidates: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over anchors.

    Args:
        scores: ``(n, m)`` cosines over the temperature; column i < n is image i itself, so each anchor has a positive.
        labels: ``(n,)`` int64.
        candidates: ``(m,)`` int64, :data:`_EMPTY` where there is none.
        weights: ``(n, m)`` >= 0 of positives; None for 1 each.
    """
    positive = labels[:, None] == candidates[None, :]
    others = positive | (candidates == _EMPTY)[None, :]
    # A finite floor: the logarithm of no negatives at all would be -inf, and its gradient not a number.
    negatives = scores.masked_fill(others, torch.finfo(scores.dtype).min).logsumexp(1)
    shares = positive.to(scores.dtype) if weights is None else positive * weights
    terms = F.softplus(negatives[:, None] - scores) * shares
    return (terms.sum(1) / shares.sum(1)).mean()
