"""Focal distillation: keep what was right. What the old model knew weighs more where it was right."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Need, Partner, Scale, Shape
from samespace.sdk.errors import ConfigError

__all__ = ["FocalDistillation", "right_before"]

Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


class FocalDistillation(CompatibilityLoss):
    r"""``mean_i (alpha + beta c_i [argmax z^o_i = y_i]) D(z^n_i, z^o_i)``.

    Positive-congruent training (Yan et al., CVPR 2021, arXiv 2011.09161, eq. 6-9): z^o are the logits of the partner, the model
    before the update, z^n those of the trained one, and D is

    * ``kl`` (FD-KL): ``t^2 KL(softmax(z^o / t) || softmax(z^n / t))``. Without the t^2, which the paper does not print and its
      code has, nothing of the term is left at t = 100.
    * ``logits`` (FD-LM): half the squared difference, its *mean* over classes. At a high t the first tends to the second.

    ``alpha = 1, beta = 0`` is ordinary distillation. c_i is what a flip of image i costs (:attr:`Batch.costs`).

    Args:
        shape: not used.
        distance: D.
        alpha: weight of every image.
        beta: what is added where the partner is right about the training picture.
        temperature: t; of ``kl`` only.
        scale: of cosines into logits, on both sides.
        head: whose class weights make z^n: ``own``, so that the model's own classifications flip less; or ``partner``, so that
            the old ones do: for retrieval, where a class is near its old prototype or not found.
        classes: whether D is about ``all`` classes, or the ``known`` ones alone, where the update adds some: of a class that it
            did not learn the partner knows little.

    Raises:
        ConfigError: ``head = "own"`` for a model that has no class weights.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDING, Need.HEAD, Need.KNOWN})
    joins: ClassVar[bool] = False

    def __init__(
        self,
        shape: Shape,
        *,
        distance: Literal["kl", "logits"] = "kl",
        alpha: Weight = 1.0,
        beta: Weight = 5.0,
        temperature: Temperature = 100.0,
        scale: Scale = 16.0,
        head: Literal["own", "partner"] = "own",
        classes: Literal["all", "known"] = "all",
    ) -> None:
        super().__init__()
        self.distance, self.alpha, self.beta, self.temperature = distance, alpha, beta, temperature
        self.scale, self.reader, self.classes = scale, head, classes

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        head = batch.head if self.reader == "own" else partner.head
        if head is None:
            raise ConfigError(
                "focal_distillation compares the model's own classifications with the partner's: give the model cosine_softmax "
                "too, or set head = 'partner'"
            )
        compared = partner.known if self.classes == "known" else slice(None)
        old = self.scale * partner.embedding @ partner.head[compared].T
        new = self.scale * batch.embedding @ head[compared].T
        costs = 1.0 if batch.costs is None else batch.costs
        weights = self.alpha + self.beta * costs * right_before(batch, partner)
        return (weights * self._distance(new, old)).mean()

    def _distance(self, new: Tensor, old: Tensor) -> Tensor:
        """``(n,)``, of ``(n, classes)`` logits."""
        if self.distance == "logits":
            return (new - old).square().mean(1) / 2
        seen, target = (new / self.temperature).log_softmax(1), (old / self.temperature).log_softmax(1)
        return self.temperature**2 * F.kl_div(seen, target, reduction="none", log_target=True).sum(1)


def right_before(batch: Batch, partner: Partner) -> Tensor:
    """``(n,)`` float, 1 where the partner classifies the image as it is labelled, by its own class weights."""
    return ((partner.embedding @ partner.head.T).argmax(1) == batch.labels).to(batch.embedding.dtype)
