"""The recipe of a fine-tuning: data and settings of the finished run, its cloud model frozen, its edge model under fake
quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samespace.cloud.recipe import Recipe
from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.toml import read_toml
from samespace.export.run import Run, read_run
from samespace.sdk.errors import ConfigError

__all__ = ["Settings", "quantise_recipe"]

#: What a fine-tuning takes over from the run's recipe.
_SAME = ("seed", "batch", "device", "data", "augment", "softmax", "prefixes")
#: The float cloud model's classifier and its embeddings of the same pictures.
_LOSSES = {"partner_head": {"weight": 1.0}, "regression": {"weight": 5.0}}


@dataclass(frozen=True)
class Settings:
    """How to fine-tune.

    Attributes:
        steps: optimiser steps.
        learning_rate: peak of the one cycle.
        batch: images a step; None for the run's.
        weight_bits: see :class:`samespace.edge.models.fake_quant.FakeQuantised`.
        activation_bits: the same.
    """

    steps: int = 200
    learning_rate: float = 1e-3
    batch: int | None = None
    weight_bits: int = 8
    activation_bits: int = 8


def quantise_recipe(folder: Path, model: str, settings: Settings) -> Recipe:
    """What fine-tunes one edge model of a finished run.

    Args:
        folder: of the run.
        model: its name in the run.
        settings: see there.

    Raises:
        ConfigError: no finished run, no such model, the cloud model, a control, or a setting out of range.
        IntegrityError: damaged weights.
    """
    run = read_run(folder)
    _check(run, model)
    file = folder / "recipe.toml"
    old = read_toml(file)
    if not isinstance(old.get("data"), dict) or not isinstance(old.get("name"), str):
        raise ConfigError(f"{file}: is no recipe of a run that 'samespace train' wrote; fine-tuning needs its data")
    here = str(folder.absolute())
    bits = {"weight_bits": settings.weight_bits, "activation_bits": settings.activation_bits}
    edge = {
        "role": "edge",
        "start_from": here,
        "quantise": bits,
        "prefixes": old.get("models", {}).get(model, {}).get("prefixes"),
    }
    content: dict[str, Any] = {
        **{key: old[key] for key in _SAME if key in old},
        **({} if settings.batch is None else {"batch": settings.batch}),
        "name": f"{old['name'][:59]}-int8",
        "mode": "sequential",
        "steps": settings.steps,
        "checkpoint_every": 25,
        "optimiser": {**old.get("optimiser", {}), "learning_rate": settings.learning_rate, "weight_decay": 0.0},
        "losses": _LOSSES,
        "models": {run.newest.name: {"role": "cloud", "run": here}, model: edge},
    }
    return parse_recipe(content, file, f"fine-tuning {model!r} of {folder}")


def _check(run: Run, model: str) -> None:
    (chosen,) = run.choose((model,))
    edges = [name for name, one in run.models.items() if one.record.role == "edge" and name not in run.controls]
    there = f"choose an edge model: {', '.join(edges)}" if edges else "the run has no edge model to choose"
    if chosen.record.role == "cloud":
        raise ConfigError(f"{run.path}: {model!r} is the cloud model, which stays in float; {there}")
    if model in run.controls:
        raise ConfigError(f"{run.path}: {model!r} is a control, which is in no space with the cloud model; {there}")
