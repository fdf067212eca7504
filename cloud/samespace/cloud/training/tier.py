"""A tier in training: its model, the terms of its objective, and what it supplies as a partner to others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samespace.cloud.losses import Batch, CompatibilityLoss, Need, Partner, Shape, StageShape, build_loss, loss_class
from samespace.cloud.losses.matryoshka import at_every_width, widths
from samespace.cloud.recipe import Recipe
from samespace.cloud.training.quantised import as_quantised, go_on
from samespace.cloud.training.seeds import seeded
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError

__all__ = ["Outcome", "Tier", "build_model_of", "build_tier", "check_models"]


class Staged(Protocol):
    """A network that gives its feature maps: see :class:`samespace.edge.models.blocks.StagedNet`."""

    head: nn.Module

    def stages(self, x: Tensor) -> list[Tensor]: ...


class Observed(NamedTuple):
    """What a model makes of a batch.

    Attributes:
        embedding: ``(n, d)`` unit rows.
        stages: feature maps, where the tier gives them; else empty.
    """

    embedding: Tensor
    stages: tuple[Tensor, ...] = ()

    def detach(self) -> Observed:
        return Observed(self.embedding.detach(), tuple(stage.detach() for stage in self.stages))


class Outcome(NamedTuple):
    """What a tier made of one batch.

    Attributes:
        total: scalar with gradient, the weighted sum of the terms.
        terms: ``(k,)`` the unweighted terms in the order of :attr:`Tier.weights`, detached.
        observed: embedding and stages, detached.
    """

    total: Tensor
    terms: Tensor
    observed: Observed


class Tier(nn.Module):
    """A model with the losses that train it; called, it gives the objective of one batch.

    Args:
        name: in the recipe.
        model: the network.
        losses: the terms.
        weights: of the terms.
        dim: of the embedding; as many coordinates of the partner's are compared with it.
        prefixes: Matryoshka widths.
        gives_stages: whether its own or other tiers' losses look at feature maps.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        losses: Mapping[str, CompatibilityLoss],
        weights: Mapping[str, float],
        dim: int,
        prefixes: tuple[int, ...] = (),
        gives_stages: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)
        self.widths = widths(dim, prefixes)
        self.gives_stages = gives_stages
        #: ``(classes,)`` bool, which classes a model that was taken over had learnt; None: all.
        self.known: Tensor | None = None

    @property
    def needs(self) -> frozenset[Need]:
        """What its losses ask of the partner; empty for the cloud model and for controls."""
        return frozenset().union(*(loss.needs for loss in self.terms.values()))

    @property
    def terms(self) -> dict[str, CompatibilityLoss]:
        """The losses by name."""
        return {name: cast(CompatibilityLoss, loss) for name, loss in self.losses.items()}

    def observe(self, images: Tensor) -> Observed:
        """``(n, 3, s, s)`` float32 -> embedding, and feature maps where the tier gives them."""
        if not self.gives_stages:
            return Observed(F.normalize(self.model(images), dim=1))
        staged = cast(Staged, self.model)
        maps = tuple(staged.stages(images))
        return Observed(F.normalize(staged.head(maps[-1]), dim=1), maps)

    def forward(
        self, images: Tensor, labels: Tensor, partner: Partner, rows: Tensor | None = None, costs: Tensor | None = None
    ) -> Outcome:
        """The objective of one batch.

        Args:
            images: ``(n, 3, s, s)`` float32.
            labels: ``(n,)`` int64.
            partner: what the cloud model supplied.
            rows: ``(n,)`` int64, the images' rows in the training set.
            costs: ``(n,)``, of a flip of each image; None for 1.
        """
        observed = self.observe(images)
        batch = Batch(observed.embedding, labels, rows, observed.stages, self.head(), costs)
        common = partner.first(observed.embedding.shape[1])
        terms = {name: self._term(loss, batch, common.only(loss.needs)) for name, loss in self.terms.items()}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return Outcome(total, torch.stack([term.detach() for term in terms.values()]), observed.detach())

    def _term(self, loss: CompatibilityLoss, batch: Batch, partner: Partner) -> Tensor:
        """One term. A partner of fewer dimensions says nothing about the others: they are free (as in BT2, ICCV 2023)."""
        width = partner.width or batch.embedding.shape[1]
        widths = tuple(one for one in self.widths if one < width)
        return at_every_width(loss, batch.first(width), partner, (*widths, width))

    def head(self) -> Tensor | None:
        """``(classes, d)`` unit rows: the class weights that its own softmax classifies by; None where it has none."""
        heads = [head for loss in self.terms.values() if (head := loss.head()) is not None]
        return heads[0] if heads else None


def check_models(recipe: Recipe) -> None:
    """Build every tier once and throw it away: before any picture is read.

    Raises:
        ConfigError: a model family or an argument that cannot be, or a loss that does not fit the models.
    """
    for name in recipe.models:
        build_tier(recipe, name, classes=2)


def build_tier(recipe: Recipe, name: str, classes: int) -> Tier:
    """A freshly initialised tier, on the CPU; its weights depend on the seed and its own name, not on the other tiers.

    Raises:
        ConfigError: a model family or an argument that cannot be, or a loss that does not fit the model.
    """
    spec = recipe.models[name]
    staged = Need.STAGES in recipe.needs(name)
    partner = recipe.partner(name)
    partner_stages = _stage_shapes(recipe, partner, build_model_of(recipe, partner)) if staged and partner else ()
    with seeded(recipe.seed, "initialise", spec.start_as or name):
        model = build_model_of(recipe, name)
        terms = recipe.terms(name)
        stages = _stage_shapes(recipe, name, model) if staged else ()
        common = min(spec.dim, recipe.models[partner].dim) if partner else spec.dim
        losses = {
            loss: _loss(name, loss, Shape(classes, common if needs else spec.dim, stages, partner_stages), options)
            for loss, (_, options) in terms.items()
            for needs in (loss_class(loss).needs & {Need.EMBEDDING, Need.HEAD, Need.GALLERY},)
        }
    go_on(model, name, spec)
    return Tier(
        name,
        as_quantised(model, name, spec),
        losses,
        {loss: weight for loss, (weight, _) in terms.items()},
        spec.dim,
        recipe.model_prefixes(name),
        staged or any(Need.STAGES in recipe.needs(other) for other in recipe.models if recipe.partner(other) == name),
    )


def build_model_of(recipe: Recipe, name: str) -> nn.Module:
    """A network of the recipe, freshly initialised by torch's global generator.

    Raises:
        ConfigError: as :func:`samespace.edge.models.registry.build_model`, with the model's name.
    """
    spec = recipe.models[name]
    try:
        return build_model(spec.family, spec.builder_arguments, weights_follow=spec.weights_sha256 is not None)
    except ConfigError as error:
        raise ConfigError(f"models.{name}: {error}") from None


def _loss(tier: str, name: str, shape: Shape, options: Mapping[str, object]) -> CompatibilityLoss:
    try:
        return build_loss(name, shape, options)
    except ConfigError as error:
        raise ConfigError(f"models.{tier}: {error}") from None


def _stage_shapes(recipe: Recipe, name: str, model: nn.Module) -> tuple[StageShape, ...]:
    """What feature maps the model gives; empty for a network without stages."""
    if not (hasattr(model, "stages") and hasattr(model, "head")):
        return ()
    size = recipe.models[name].preprocess.size
    training = model.training
    model.eval()
    with torch.no_grad():
        maps = cast(Staged, model).stages(torch.zeros(1, 3, size, size))
    model.train(training)
    return tuple(StageShape(stage.shape[1], size / stage.shape[-1]) for stage in maps)
