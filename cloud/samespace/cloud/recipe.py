"""What a training run is made from: a recipe in TOML, read strictly.

An unknown key is refused, with the key that was probably meant. Sizes (``--size``, ``SAMESPACE_SIZE``) are tables of overrides
in the recipe itself, such as ``[sizes.ci]``, merged over the rest before it is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from samespace.cloud.data.augment import Augment
from samespace.cloud.data.config import DataConfig, Size
from samespace.cloud.losses.registry import check_options, loss_class, option_names
from samespace.cloud.toml import explain, merged, read_toml, to_toml
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import canonical_json, digest
from samespace.sdk.preprocess import Preprocess

__all__ = ["LossSpec", "ModelSpec", "OptimiserSpec", "Recipe", "SoftmaxSpec", "load_recipe"]

#: The name of a tier, which becomes the name of files.
TierName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(_Part):
    """One tier: a model of a family, in the cloud or at the edge."""

    role: Literal["cloud", "edge"]
    family: str = Field(description="model family, an entry point of the group samespace.models")
    dim: int = Field(ge=2, le=65536, description="dimension of the embedding; the same for all models of a recipe")
    preprocess: Preprocess = Field(description="how a picture becomes the model's input; at least its size")
    arguments: dict[str, Any] = Field(default_factory=dict, description="of the family's builder, beyond dim and image_size")
    compatible: bool = Field(
        default=True, description="false: a control, trained without any term that involves the cloud model"
    )
    learning_rate: float | None = Field(default=None, gt=0, description="this model's own peak rate")

    @field_validator("arguments")
    @classmethod
    def _plain(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for key, instead in (("dim", "dim"), ("image_size", "preprocess.size")):
            if key in arguments:
                raise ValueError(f"{key} is set by the model's own {instead}, not among the arguments")
        try:
            canonical_json(arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"must be plain values that JSON can hold ({error})") from None
        return arguments

    @property
    def builder_arguments(self) -> dict[str, Any]:
        """All keyword arguments of the family's builder."""
        return {**self.arguments, "dim": self.dim, "image_size": self.preprocess.size}


class LossSpec(_Part):
    """A term of the compatible edge models' objective: its weight, and the loss's own options beside it."""

    weight: float = Field(default=1.0, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, dict) and "options" not in value:
            weight = {"weight": value["weight"]} if "weight" in value else {}
            return {**weight, "options": {key: item for key, item in value.items() if key != "weight"}}
        return value


class SoftmaxSpec(_Part):
    """The cosine softmax of the cloud model and the controls; losses with options of these names take them, too."""

    scale: float = Field(default=16.0, gt=0, description="inverse temperature of the cosines")
    margin: float = Field(default=0.0, ge=0, lt=2, description="subtracted from the true class's cosine")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class OptimiserSpec(_Part):
    """AdamW, one cycle."""

    learning_rate: float = Field(default=3e-3, gt=0, description="peak; a model may have its own")
    weight_decay: float = Field(default=0.02, ge=0)
    warmup: float = Field(default=0.2, gt=0, lt=1, description="share of the steps in which the rate climbs")


class Recipe(_Part):
    """Models, data, losses and how to train: all that the weights depend on, and where to run."""

    name: TierName = Field(description="of the run, and of the space that its cloud model founds")
    mode: Literal["joint", "sequential"] = Field(
        default="joint", description="joint: all models in one loop; sequential: the cloud first, then the edges with it frozen"
    )
    seed: int = Field(default=0, ge=0, lt=2**63)
    steps: int = Field(ge=1, description="optimiser steps (of each stage, in sequential mode)")
    batch: int = Field(ge=2, description="images a step, over all processes")
    device: str = Field(default="auto", description="auto, or any device that torch knows")
    checkpoint_every: int = Field(default=100, ge=1, description="steps between two checkpoints")
    log_every: int = Field(default=10, ge=1, description="steps between two lines of the log")
    data: DataConfig
    augment: Augment = Field(default_factory=Augment)
    optimiser: OptimiserSpec = Field(default_factory=OptimiserSpec)
    softmax: SoftmaxSpec = Field(default_factory=SoftmaxSpec)
    losses: dict[str, LossSpec] = Field(
        default_factory=lambda: {"cosine_softmax": LossSpec(), "partner_head": LossSpec(), "regression": LossSpec(weight=5.0)},
        description="of the compatible edge models",
    )
    models: dict[TierName, ModelSpec]

    @field_validator("losses")
    @classmethod
    def _known_losses(cls, losses: dict[str, LossSpec]) -> dict[str, LossSpec]:
        try:
            for name, spec in losses.items():
                check_options(name, spec.options)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return losses

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        clouds = [name for name, model in self.models.items() if model.role == "cloud"]
        if len(clouds) != 1:
            found = ", ".join(clouds) or "none"
            raise ValueError(f"models: exactly one must have role = 'cloud', which founds the space; got {found}")
        cloud = self.models[clouds[0]]
        if not cloud.compatible:
            raise ValueError(f"models.{clouds[0]}: compatible = false is for edge models; the cloud model founds the space")
        for name, model in self.models.items():
            if model.dim != cloud.dim:
                raise ValueError(
                    f"models.{name}: dim = {model.dim}, but the cloud model {clouds[0]!r} has dim = {cloud.dim}; "
                    f"one space has one dimension: set dim = {cloud.dim} for {name!r}, or change it for all models"
                )
            wrong = [key for key in ("fit", "background") if getattr(model.preprocess, key) != getattr(cloud.preprocess, key)]
            if wrong:
                raise ValueError(
                    f"models.{name}: preprocess.{wrong[0]} differs from that of {clouds[0]!r}; all models of a recipe "
                    "learn from the same augmented picture: give them the same"
                )
            if model.preprocess.size > self.data.source_size:
                raise ValueError(
                    f"models.{name}: preprocess.size = {model.preprocess.size} is more than data.source_size = "
                    f"{self.data.source_size}, at which training pictures are kept; raise data.source_size"
                )
        involved = any(loss_class(name).needs for name in self.losses)
        if not involved and any(model.compatible for model in self.edges.values()):
            raise ValueError(
                "losses: none of them involves the cloud model, so no edge model would join its space; add partner_head or "
                "regression, or mark the edge models compatible = false"
            )
        return self

    @property
    def cloud(self) -> str:
        """Name of the cloud model."""
        return next(name for name, model in self.models.items() if model.role == "cloud")

    @property
    def edges(self) -> dict[str, ModelSpec]:
        """The edge models, controls among them."""
        return {name: model for name, model in self.models.items() if model.role == "edge"}

    @property
    def source_preprocess(self) -> Preprocess:
        """What makes the training pictures, before augmentation; each model then sees them at its own size."""
        return self.models[self.cloud].preprocess.model_copy(update={"size": self.data.source_size})

    def terms(self, name: str) -> dict[str, tuple[float, dict[str, Any]]]:
        """The objective of one model: loss -> weight and options.

        The cloud model and the controls have their own cosine softmax alone.
        """
        model = self.models[name]
        compatible = model.role == "edge" and model.compatible
        losses = self.losses if compatible else {"cosine_softmax": LossSpec()}
        shared = self.softmax.model_dump()
        return {
            loss: (spec.weight, {**{key: shared[key] for key in option_names(loss) if key in shared}, **spec.options})
            for loss, spec in losses.items()
        }

    def learning_rate(self, name: str) -> float:
        """Peak rate of one model."""
        return self.models[name].learning_rate or self.optimiser.learning_rate

    def resolved(self) -> dict[str, Any]:
        """The recipe with all defaults filled in, plain values, in the form in which it is written."""
        content = self.model_dump(mode="json")
        content["losses"] = {name: {"weight": spec.weight, **spec.options} for name, spec in self.losses.items()}
        return content

    @property
    def digest(self) -> str:
        """SHA-256 of all that the weights depend on: where it runs and how often it saves is left out."""
        content = {
            key: value for key, value in self.resolved().items() if key not in ("device", "checkpoint_every", "log_every")
        }
        return digest(canonical_json(content))

    def to_toml(self) -> str:
        """As a file that :func:`load_recipe` reads to an equal recipe; sizes are already applied."""
        return to_toml(self.resolved())


def load_recipe(path: Path | str, size: str | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: TOML file; relative paths in it are relative to its folder.
        size: name of a table of overrides in it, ``[sizes.NAME]``; None takes the environment's ``SAMESPACE_SIZE``.
            ``full``, the default, needs no table.

    Raises:
        ConfigError: unreadable, unknown or wrong keys, models that do not fit together, or no such size.
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
    variants = {name: _validated(merged(content, sizes.get(name, {})), path, name) for name in {"full": None, **sizes}}
    return variants[size]


def _validated(content: dict[str, Any], path: Path, size: str) -> Recipe:
    data = content.get("data")
    if isinstance(data, dict) and data.get("kind") == "emoji" and size in get_args(Size):
        content = {**content, "data": {"size": size, **data}}
    try:
        recipe = Recipe.model_validate(content)
        base = path.absolute().parent
        paths = {name: base / value for name, value in recipe.data if isinstance(value, Path)}
        return recipe.model_copy(update={"data": recipe.data.model_copy(update=paths)})
    except ValidationError as error:
        where = f"{path} at size {size}" if size != "full" else str(path)
        raise ConfigError(f"{where}: {explain(error, Recipe)}") from None
