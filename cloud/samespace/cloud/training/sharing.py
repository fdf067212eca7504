"""Tiers that share weights: how they are tied for training, stepped together, and taken apart again.

A shared parameter is registered with one tier, its owner, and only referred to by the others. So state dictionaries, optimisers
and checkpoints, which go by tier, hold it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from samespace.cloud.losses import Batch, CompatibilityLoss, CosineSoftmax, Partner
from samespace.cloud.losses.base import prefix
from samespace.cloud.losses.cosine_softmax import cosine_cross_entropy
from samespace.cloud.recipe import Recipe
from samespace.cloud.recipe.joint import head_users, shared_networks, width_of
from samespace.cloud.training.device import World
from samespace.cloud.training.family import FamilyGradients
from samespace.cloud.training.seeds import generator
from samespace.cloud.training.stages import Stage
from samespace.cloud.training.tier import Tier
from samespace.cloud.training.uncertainty import UncertaintyWeights
from samespace.edge.models import slimmable
from samespace.edge.models.slimmable import SlimmableResidual, Width

__all__ = ["Family", "SharedSoftmax", "family_of", "separate", "share"]

_HEAD = "cosine_softmax"
#: What belongs to no tier, by a name that no tier can have.
_WEIGHTS = ".weights"


def share(recipe: Recipe, tiers: Mapping[str, Tier]) -> None:
    """Tie freshly built tiers, in place, as the recipe has it; nothing happens where it shares nothing.

    A shared network starts from the weights of its widest tier, as if that were alone.
    """
    for owner, followers in shared_networks(recipe.models).items():
        names = sorted((*followers, owner), key=lambda name: width_of(recipe.models[name]))
        widths = [width_of(recipe.models[name]) for name in names]
        arguments = {key: value for key, value in recipe.models[owner].builder_arguments.items() if key != "width"}
        network = slimmable.build(**arguments, widths=widths)
        network.net.load_state_dict(tiers[owner].model.state_dict())
        tiers[owner].model = network
        for name in followers:
            tiers[name].model = network.at(width_of(recipe.models[name]))
    if recipe.joint.shared_head:
        head = cast(CosineSoftmax, tiers[recipe.cloud].losses[_HEAD])
        for name in _head_users(recipe)[1:]:
            losses = tiers[name].losses
            losses[_HEAD] = SharedSoftmax(cast(CosineSoftmax, losses[_HEAD]), head)


def separate(tiers: Mapping[str, Tier]) -> None:
    """Give every tier of a shared network an ordinary network of its own, in place: what is written, measured and exported."""
    for tier in tiers.values():
        if isinstance(tier.model, Width):
            tier.model = tier.model.extract()
    for tier in tiers.values():  # after those that refer to it
        if isinstance(tier.model, SlimmableResidual):
            tier.model = tier.model.extract(tier.model.widths[-1])


class Family:
    """The tiers of one stage, stepped together.

    Args:
        recipe: with shares, a shared head, or weights other than equal.
        stage: of that recipe.
        tiers: all tiers, tied by :func:`share` and placed on their device.
        world: the processes that train together. The tiers must not be wrapped: gradients are averaged here, because a wrapper
            would wait for the parameters that are another tier's.
    """

    def __init__(self, recipe: Recipe, stage: Stage, tiers: Mapping[str, Tier], world: World) -> None:
        self._recipe, self._stage, self._world = recipe, stage, world
        self._tiers = {name: tiers[name] for name in stage.trained}
        weighs = recipe.joint.weights == "uncertainty" and len(stage.trained) > 1
        self.weights = UncertaintyWeights(stage.trained).to(world.device) if weighs else None
        self.shared = self._shared()
        ids = {id(parameter) for parameter in self.shared}
        learning = [*self._tiers.values(), *self.modules.values()]
        self.private = [
            parameter
            for module in learning
            for parameter in module.parameters()
            if parameter.requires_grad and id(parameter) not in ids
        ]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What learns beside the tiers, and belongs into checkpoints; under names that no tier has."""
        return {} if self.weights is None else {_WEIGHTS: self.weights}

    def begin(self, step: int) -> FamilyGradients:
        """What gathers the gradients of one step; all gradients are None after it."""
        for parameter in self.private:
            parameter.grad = None
        if self._world.size > 1:
            self._world.broadcast([buffer for tier in self._tiers.values() for buffer in tier.buffers()])
        return FamilyGradients(
            self.shared,
            project=self._recipe.joint.project_conflicts,
            generator=generator(torch.device("cpu"), self._recipe.seed, "conflicts", self._stage.name, step),
            average=self._world.mean if self._world.size > 1 else None,
            private=self.private,
        )

    def objective(self, name: str, total: Tensor) -> Tensor:
        """A tier's total as it counts in the family."""
        return total if self.weights is None else self.weights(name, total)

    def _shared(self) -> list[nn.Parameter]:
        """What several tiers of the stage reach."""
        owners = shared_networks(self._recipe.models)
        networks = [tier.model for name, tier in self._tiers.items() if name in owners]
        found = [value for network in networks for value in cast(SlimmableResidual, network).shared_parameters()]
        if self._recipe.joint.shared_head:
            found.append(cast(CosineSoftmax, self._tiers[self._recipe.cloud].losses[_HEAD]).weight)
        return found


def family_of(recipe: Recipe, stage: Stage, tiers: Mapping[str, Tier], world: World) -> Family | None:
    """The family of a stage; None where its tiers have nothing to do with each other's gradients."""
    joint = recipe.joint
    ties = joint.shared_head or bool(set(shared_networks(recipe.models)) & set(stage.trained))
    weighs = joint.weights != "equal" and len(stage.trained) > 1
    return Family(recipe, stage, tiers, world) if ties or weighs else None


class SharedSoftmax(CompatibilityLoss):
    """A tier's cosine softmax over the class weights of another's, which learn from both.

    The first coordinates of the class weights, normalised again, serve a narrower embedding.

    Args:
        own: gives scale, margin and label smoothing.
        owner: gives the class weights, with gradient.
    """

    def __init__(self, own: CosineSoftmax, owner: CosineSoftmax) -> None:
        super().__init__()
        self.scale, self.margin, self.label_smoothing = own.scale, own.margin, own.label_smoothing
        self._width = own.weight.shape[1]
        # In a tuple it is no submodule: the class weights stay with their owner alone.
        self._owner = (owner,)

    def head(self) -> Tensor:
        """``(classes, dim)`` unit rows, with gradient; ``dim`` of this tier."""
        return prefix(self._owner[0].head(), self._width)

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        head = prefix(self.head(), batch.embedding.shape[1])
        return cosine_cross_entropy(batch, head, self.scale, self.margin, self.label_smoothing)


def _head_users(recipe: Recipe) -> tuple[str, ...]:
    return head_users(recipe.cloud, recipe.models, {name: recipe.objective(name) for name in recipe.models})
