"""What a search is made from: a TOML file, read strictly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from samespace.cloud.recipe import LossSpec
from samespace.cloud.recipe.parts import Losses, Part
from samespace.cloud.toml import explain, merged, read_toml, to_toml
from samespace.edge.search import SearchSpace
from samespace.export.run import read_run
from samespace.sdk.errors import ConfigError

__all__ = ["Budget", "Evaluation", "Evolution", "Finalists", "Proxy", "RewardName", "Search", "SupernetSpec", "load_search"]

#: See :mod:`samespace.cloud.search.rewards`.
RewardName = Literal["R1", "R2", "R3", "R4"]


def _default_losses() -> dict[str, LossSpec]:
    return {"cosine_softmax": LossSpec(), "partner_head": LossSpec(), "regression": LossSpec(weight=5.0)}


class _Training(Part):
    steps: int = Field(default=2400, ge=1)
    batch: int = Field(default=96, ge=2)
    learning_rate: float = Field(default=3e-3, gt=0, description="peak")
    losses: Losses = Field(default_factory=_default_losses, description="compatible ones")
    checkpoint_every: int = Field(default=100, ge=1)


class SupernetSpec(_Training):
    """How the supernet is trained."""

    seed: int = Field(default=0, ge=0, lt=2**63)


class Budget(Part):
    """Hard limits: a candidate above one is never evaluated, a finalist that measures above one is not taken."""

    macs: int = Field(ge=1, description="multiply-accumulates of one picture")
    params: int | None = Field(default=None, ge=1)
    latency_ms: float | None = Field(default=None, gt=0, description="one picture by onnxruntime on one thread of this machine")
    file_bytes: int | None = Field(default=None, ge=1, description="of the ONNX artifact, fp32")


class Proxy(Part):
    """The ranking without evaluation that chooses the first population."""

    pool: int = Field(
        default=200, ge=0, description="random architectures within the budget; 0: the first population is random"
    )
    pictures: int = Field(default=256, ge=8, description="training pictures that features are compared on")


class Evaluation(Part):
    """How a candidate is judged."""

    bn_batches: int = Field(default=4, ge=1, description="training batches that its batch norm is estimated on")
    bn_batch: int = Field(default=128, ge=2)


class Evolution(Part):
    """How candidates beget candidates."""

    population: int = Field(default=20, ge=2)
    generations: int = Field(default=8, ge=1, description="the first, chosen by proxy, is one of them")
    parents: int = Field(default=8, ge=2, description="best candidates so far that the next generation comes from")
    mutation_rate: float = Field(default=0.15, gt=0, le=1, description="for each choice")
    crossover_share: float = Field(default=0.5, ge=0, le=1, description="of a generation; mutated afterwards like the rest")
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _has_parents(self) -> Self:
        if self.parents > self.population:
            raise ValueError(f"parents = {self.parents} is more than population = {self.population}; lower it")
        return self


class Finalists(_Training):
    """Which winners there are, and how they are trained from scratch."""

    per_reward: int = Field(default=1, ge=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), description="one run each; []: only write retrain.toml")
    controls: bool = Field(default=True, description="train each winner without compatibility beside it")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or any(not 0 <= seed < 2**63 for seed in seeds):
            raise ValueError("must be different numbers from 0 on, such as [0, 1, 2]")
        return seeds


class Search(Part):
    """All that a search depends on, and where it runs."""

    run: Path = Field(description="a finished run; its cloud model is the partner, its recipe gives data and augmentation")
    rewards: tuple[RewardName, ...] = Field(default=("R1", "R2", "R3", "R4"), min_length=1)
    device: str = Field(default="auto", description="auto, or any device that torch knows")
    workers: int = Field(default=0, ge=0, description="processes that evaluate on the CPU; 0: one for each core")
    space: SearchSpace
    supernet: SupernetSpec = Field(default_factory=SupernetSpec)
    budget: Budget
    proxy: Proxy = Field(default_factory=Proxy)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    evolution: Evolution = Field(default_factory=Evolution)
    finalists: Finalists = Field(default_factory=Finalists)

    @field_validator("rewards")
    @classmethod
    def _once(cls, rewards: tuple[RewardName, ...]) -> tuple[RewardName, ...]:
        if len(set(rewards)) < len(rewards):
            raise ValueError("names a reward twice; name each once")
        return rewards

    def resolved(self) -> dict[str, Any]:
        """With all defaults filled in, plain values."""
        content = self.model_dump(mode="json")
        for part, spec in (("supernet", self.supernet), ("finalists", self.finalists)):
            content[part]["losses"] = {name: loss.written() for name, loss in spec.losses.items()}
        return content

    def to_toml(self) -> str:
        """As a file that :func:`load_search` reads to an equal search."""
        return to_toml(self.resolved())


def load_search(path: Path | str, size: str | None = None) -> Search:
    """Read a search.

    Args:
        path: TOML file; ``run`` in it is relative to its folder. ``space.dim`` and ``space.image_size`` are the partner's
            unless they are given.
        size: name of a table of overrides in it, ``[sizes.NAME]``; None takes the environment's ``SAMESPACE_SIZE``.
            ``full``, the default, needs no table.

    Raises:
        ConfigError: unreadable, unknown or wrong keys, no such size, or a run that is not finished.
    """
    path = Path(path)
    content = read_toml(path)
    sizes = content.pop("sizes", {})
    size = size or os.environ.get("SAMESPACE_SIZE") or "full"
    if not isinstance(sizes, dict) or not all(isinstance(table, dict) for table in sizes.values()):
        raise ConfigError(f"{path}: sizes: must be tables of overrides, such as [sizes.ci]")
    if size not in sizes and size != "full":
        there = ", ".join(sorted({"full", *sizes}))
        raise ConfigError(f"{path}: no size {size!r} (--size or SAMESPACE_SIZE); there is {there}; add a table [sizes.{size}]")
    # Every size is read, so that a typo in one shows before the day it is used.
    variants = {name: _parsed(merged(content, sizes.get(name, {})), path, name) for name in {"full": None, **sizes}}
    return variants[size]


def _parsed(content: dict[str, Any], path: Path, size: str) -> Search:
    where = f"{path} at size {size}" if size != "full" else str(path)
    run = content.get("run")
    if not isinstance(run, str):
        raise ConfigError(f"{where}: run: must name the folder of a finished run, whose cloud model is the partner")
    folder = path.absolute().parent / run
    try:
        partner = read_run(folder).cloud.record
    except ConfigError as error:
        raise ConfigError(f"{where}: run: {error}") from None
    space = content.get("space", {})
    if isinstance(space, dict):
        space = {"dim": partner.dim, "image_size": partner.preprocess.size, **space}
    try:
        found = Search.model_validate({**content, "run": str(folder), "space": space})
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, Search)}") from None
    if found.space.dim > partner.dim:
        raise ConfigError(f"{where}: space.dim = {found.space.dim} is more than the partner's {partner.dim}; lower it")
    return found
