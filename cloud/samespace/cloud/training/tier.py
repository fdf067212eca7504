"""A tier in training: its model, the terms of its objective, and what it supplies as a partner to others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samespace.cloud.losses import Batch, CompatibilityLoss, CosineSoftmax, Need, Partner, Shape, build_loss
from samespace.cloud.recipe import Recipe
from samespace.cloud.training.seeds import seeded
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError

__all__ = ["Outcome", "Tier", "build_tier", "check_models"]


class Outcome(NamedTuple):
    """What a tier made of one batch.

    Attributes:
        total: scalar with gradient, the weighted sum of the terms.
        terms: ``(k,)`` the unweighted terms in the order of :attr:`Tier.weights`, detached.
        embedding: ``(n, d)`` unit rows, detached.
    """

    total: Tensor
    terms: Tensor
    embedding: Tensor


class Tier(nn.Module):
    """A model with the losses that train it; called, it gives the objective of one batch."""

    def __init__(
        self, name: str, model: nn.Module, losses: Mapping[str, CompatibilityLoss], weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    @property
    def needs(self) -> frozenset[Need]:
        """What its losses ask of the partner; empty for the cloud model and for controls."""
        return frozenset().union(*(loss.needs for loss in self._losses.values()))

    def embed(self, images: Tensor) -> Tensor:
        """``(n, 3, s, s)`` float32 -> ``(n, d)`` unit rows."""
        return F.normalize(self.model(images), dim=1)

    def forward(self, images: Tensor, labels: Tensor, partner: Partner) -> Outcome:
        """The objective of one batch: ``(n, 3, s, s)`` float32 images, ``(n,)`` int64 labels."""
        batch = Batch(self.embed(images), labels)
        terms = {name: loss(batch, partner.only(loss.needs)) for name, loss in self._losses.items()}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return Outcome(total, torch.stack([term.detach() for term in terms.values()]), batch.embedding.detach())

    def as_partner(self, embedding: Tensor) -> Partner:
        """What other tiers may learn from: this one's embedding of their images, and its head; without gradient.

        Args:
            embedding: ``(n, d)`` unit rows, made by this tier from the same images.
        """
        own = self._losses["cosine_softmax"]
        if not isinstance(own, CosineSoftmax):
            raise ConfigError(f"tier {self.name} has no cosine softmax of its own, so no head that others could use")
        # A copy: this step's head, whatever the optimiser does to it next.
        return Partner({Need.EMBEDDING: embedding.detach(), Need.HEAD: own.head().detach()})

    @property
    def _losses(self) -> dict[str, CompatibilityLoss]:
        return {name: cast(CompatibilityLoss, loss) for name, loss in self.losses.items()}


def check_models(recipe: Recipe) -> None:
    """Build every model once and throw it away: before any picture is read.

    Raises:
        ConfigError: a model family or an argument that cannot be.
    """
    for name in recipe.models:
        _build_model(recipe, name)


def build_tier(recipe: Recipe, name: str, classes: int) -> Tier:
    """A freshly initialised tier, on the CPU; its weights depend on the seed and its own name, not on the other tiers.

    Raises:
        ConfigError: a model family or an argument that cannot be.
    """
    spec = recipe.models[name]
    with seeded(recipe.seed, "initialise", name):
        model = _build_model(recipe, name)
        terms = recipe.terms(name)
        shape = Shape(classes, spec.dim)
        losses = {loss: build_loss(loss, shape, options) for loss, (_, options) in terms.items()}
    return Tier(name, model, losses, {loss: weight for loss, (weight, _) in terms.items()})


def _build_model(recipe: Recipe, name: str) -> nn.Module:
    spec = recipe.models[name]
    try:
        return build_model(spec.family, spec.builder_arguments)
    except ConfigError as error:
        raise ConfigError(f"models.{name}: {error}") from None
