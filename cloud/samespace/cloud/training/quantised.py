"""Edge models that go on from a finished run, and learn as int8 will compute them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from samespace.cloud.inputs import normalised
from samespace.cloud.recipe import ModelSpec, Recipe
from samespace.cloud.training.data import TrainingData
from samespace.edge.models.fake_quant import FakeQuantised
from samespace.export.run import RunModel, read_run
from samespace.sdk.errors import ConfigError, IntegrityError
from samespace.sdk.preprocess import Preprocess

if TYPE_CHECKING:
    from samespace.cloud.training.tier import Tier

__all__ = ["as_quantised", "calibrate", "calibrate_tiers", "go_on", "in_float", "start_of"]


def go_on(model: nn.Module, name: str, spec: ModelSpec) -> None:
    """Give a fresh network the weights of the run that the recipe has it start from, if any; in place.

    Raises:
        ConfigError, IntegrityError: the run is not complete, damaged, or no longer the one that the recipe was read with.
    """
    if spec.start_from is not None:
        model.load_state_dict(start_of(name, spec).build().state_dict())


def as_quantised(model: nn.Module, name: str, spec: ModelSpec) -> nn.Module:
    """The network as it learns: under fake quantisation, where the recipe asks for that.

    Raises:
        ConfigError: a network that cannot be traced.
    """
    if spec.quantise is None:
        return model
    try:
        return FakeQuantised(model, **spec.quantise.model_dump())
    except ConfigError as error:
        raise ConfigError(f"models.{name}: {error}") from None


def calibrate_tiers(recipe: Recipe, tiers: Mapping[str, Tier], data: TrainingData) -> None:
    """Set the ranges of tiers under fake quantisation, in place."""
    for name, tier in tiers.items():
        if isinstance(tier.model, FakeQuantised):
            calibrate(tier.model, recipe.models[name].preprocess, data)


def calibrate(model: FakeQuantised, preprocess: Preprocess, data: TrainingData) -> None:
    """Set the ranges of activations by the calibration pictures, as a device would prepare them; in place."""
    pictures = data.prepared(data.calibration(), preprocess)
    device = next(model.parameters()).device

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(pictures), 64):
            yield normalised(torch.from_numpy(np.array(pictures[start : start + 64])).to(device), preprocess)

    model.calibrate(batches())


def in_float(tiers: Mapping[str, Tier]) -> None:
    """Give tiers under fake quantisation their float networks back, in place: what is written, measured and exported."""
    for tier in tiers.values():
        if isinstance(tier.model, FakeQuantised):
            tier.model = tier.model.network


def start_of(name: str, spec: ModelSpec) -> RunModel:
    """The model of a finished run that the recipe's model of that name goes on from.

    Raises:
        ConfigError, IntegrityError: the run is not complete, damaged, or no longer the one that the recipe was read with.
    """
    assert spec.start_from is not None
    (model,) = read_run(spec.start_from).choose((name,))
    if model.record.weights_sha256 != spec.weights_sha256:
        raise IntegrityError(
            f"{spec.start_from}: its model {name!r} is not the one that this run was started with; "
            "put that run back, or train anew"
        )
    return model
