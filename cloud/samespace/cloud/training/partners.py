"""What the cloud model supplies to the edge models' losses: the founder of a finished run, the partner of each batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from samespace.cloud.evaluation import embed
from samespace.cloud.losses import CosineSoftmax, Gallery, Need, Partner
from samespace.cloud.losses.lce import class_centres
from samespace.cloud.recipe import Recipe
from samespace.cloud.training.data import TrainingData
from samespace.cloud.training.tier import Observed, Tier
from samespace.export.run import Run, RunModel, read_run
from samespace.sdk.errors import ConfigError, IntegrityError

__all__ = ["Founder", "partner_of", "read_founder", "read_head", "supply_gallery", "take_over"]


class Founder(NamedTuple):
    """The cloud model of a finished run: the one that founded its space, or of an upgrade its successor.

    Attributes:
        run: read and verified.
        model: the model.
        head: ``(classes, dim)`` its class weights.
        classes: names of the rows.
    """

    run: Run
    model: RunModel
    head: Tensor
    classes: tuple[str, ...]


def read_founder(recipe: Recipe) -> Founder | None:
    """The run that the recipe's cloud model comes from; None where it is trained here.

    Raises:
        ConfigError, IntegrityError: the run is not complete, damaged, or no longer the one that the recipe was read with.
    """
    spec = recipe.models[recipe.cloud]
    if spec.run is None:
        return None
    run = read_run(spec.run)
    if run.newest.record.weights_sha256 != spec.weights_sha256:
        raise IntegrityError(
            f"{spec.run}: its cloud model is not the one that this run was started with; put that run back, or train anew"
        )
    return Founder(run, run.newest, *read_head(spec.run, run.newest.name))


def read_head(run: Path, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """``(classes, dim)`` class weights of a model of a finished run, and the names of the rows.

    Raises:
        ConfigError: they cannot be read.
    """
    file = run / "heads" / f"{name}.safetensors"
    try:
        head = safetensors.torch.load(file.read_bytes())["weight"]
        classes = tuple(json.loads((run / "heads" / "classes.json").read_bytes()))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{file}: the cloud model's class weights cannot be read ({error}); train that run again") from None
    return head, classes


def take_over(tier: Tier, founder: Founder, recipe: Recipe, data: TrainingData) -> None:
    """Give the cloud tier the weights and the head of a finished run, in place.

    In an upgrade the data may have other classes than the run learnt: a class that it does not know gets the mean of its
    embeddings of that class's training pictures (the synthesised classifier of BCT, Shen et al., CVPR 2020, section 3.3).

    Raises:
        ConfigError: the run learnt other classes, and no successor is trained; or ``labels`` that are no classes.
    """
    spec = recipe.models[tier.name]
    known = {label: row for row, label in enumerate(founder.classes)}
    if wrong := [new for new, old in spec.labels.items() if new not in data.classes or old not in known]:
        raise ConfigError(
            f"models.{tier.name}.labels: {wrong[0]} = {spec.labels[wrong[0]]!r}: the first must be a class of this "
            f"recipe's data, the second one that the run {founder.run.path} learnt"
        )
    names = [spec.labels.get(label, label) for label in data.classes]
    if recipe.successor is None and set(names) != set(known):
        only = sorted(set(known) ^ set(names))[:3]
        raise ConfigError(
            f"models.{tier.name}: the run {founder.run.path} learnt other classes than this recipe's data has "
            f"(for example {', '.join(only)}): its head cannot teach them; use the same data and split"
        )
    tier.model.load_state_dict(founder.model.build().state_dict())
    head = torch.stack([founder.head[known[name]] if name in known else torch.zeros(spec.dim) for name in names])
    tier.known = torch.tensor([name in known for name in names])
    if unknown := [number for number, name in enumerate(names) if name not in known]:
        head[unknown] = _prototypes(tier, recipe, data, unknown)
    for loss in tier.terms.values():
        if isinstance(loss, CosineSoftmax):
            loss.weight = nn.Parameter(head)


def _prototypes(tier: Tier, recipe: Recipe, data: TrainingData, classes: list[int]) -> Tensor:
    """``(len(classes), dim)`` unit rows: the mean embedding of each class's training pictures."""
    rows = np.flatnonzero(np.isin(data.labels, classes))
    preprocess = recipe.models[tier.name].preprocess
    embedding = embed(tier.model, data.prepared([data.split.train[row] for row in rows], preprocess), preprocess)
    gallery = Gallery(torch.from_numpy(embedding), torch.from_numpy(data.labels[rows]))
    return class_centres(gallery, len(data.classes))[classes]


def supply_gallery(tier: Tier, recipe: Recipe, data: TrainingData) -> Gallery:
    """The finished cloud model's embeddings of all training pictures, as a device would see them, on the tier's device."""
    preprocess = recipe.models[tier.name].preprocess
    rows = embed(tier.model, data.prepared(data.split.train, preprocess), preprocess)
    device = next(tier.model.parameters()).device
    return Gallery(torch.from_numpy(rows).to(device), torch.from_numpy(data.labels).to(device))


def partner_of(tier: Tier, observed: Observed, gallery: Gallery | None = None) -> Partner:
    """What other tiers may learn from this one, without gradient.

    Args:
        tier: the cloud model.
        observed: what it made of the other tiers' images.
        gallery: of a model that stands still.

    Raises:
        ConfigError: the tier has no head of its own.
    """
    head = tier.head()
    if head is None:
        raise ConfigError(
            f"models.{tier.name}: has no class weights of its own that others could learn from; give it cosine_softmax"
        )
    # A copy: this step's head, whatever the optimiser does to it next.
    supplied: dict[Need, Any] = {Need.EMBEDDING: observed.embedding.detach(), Need.HEAD: head.detach().clone()}
    learnt = torch.ones(len(head), dtype=torch.bool) if tier.known is None else tier.known
    supplied[Need.KNOWN] = learnt.to(head.device)
    if observed.stages:
        supplied[Need.STAGES] = observed.detach().stages
    if gallery is not None:
        supplied[Need.GALLERY] = gallery
    return Partner(supplied)
