"""The parts of a recipe: models, the terms of their objectives, and how they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic.functional_validators import AfterValidator

from samespace.cloud.losses.registry import check_options
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import canonical_json
from samespace.sdk.preprocess import Preprocess

__all__ = [
    "FlipSpec",
    "LossSpec",
    "Losses",
    "ModelSpec",
    "OptimiserSpec",
    "Part",
    "Prefixes",
    "QuantiseSpec",
    "SoftmaxSpec",
    "TierName",
]

#: The name of a tier, which becomes the name of files.
TierName = Annotated[str, StringConstraints(pattern="^[a-z][a-z0-9_-]{0,63}$")]


class Part(BaseModel):
    """What every part of a recipe is: unchangeable, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LossSpec(Part):
    """A term of a model's objective: its weight, and the loss's own options beside it."""

    weight: float = Field(default=1.0, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, dict) and "options" not in value:
            weight = {"weight": value["weight"]} if "weight" in value else {}
            return {**weight, "options": {key: item for key, item in value.items() if key != "weight"}}
        return value

    def written(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"weight": self.weight, **self.options}


def _known_losses(losses: dict[str, LossSpec]) -> dict[str, LossSpec]:
    try:
        for name, spec in losses.items():
            check_options(name, spec.options)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return losses


def _ascending(prefixes: tuple[int, ...]) -> tuple[int, ...]:
    if prefixes != tuple(sorted(set(prefixes))) or any(width < 2 for width in prefixes):
        raise ValueError("must be ascending widths of 2 or more, each once, such as [16, 32, 64]")
    return prefixes


#: Name of a loss -> weight and options.
Losses = Annotated[dict[str, LossSpec], AfterValidator(_known_losses)]
#: Widths of Matryoshka prefixes.
Prefixes = Annotated[tuple[int, ...], AfterValidator(_ascending)]


class QuantiseSpec(Part):
    """Fake quantisation, see :class:`samespace.edge.models.fake_quant.FakeQuantised`."""

    weight_bits: int = Field(default=8, ge=2, le=8, description="ONNX artifacts keep 7 of the 8 (reduce_range)")
    activation_bits: int = Field(default=8, ge=2, le=8)
    momentum: float = Field(
        default=0.01, ge=0, lt=1, description="how far a batch moves the ranges of activations; 0: as calibrated before"
    )
    float_share: float = Field(
        default=0.5, ge=0, lt=1, description="of each batch, learnt from without rounding: keeps float and int8 alike"
    )


class ModelSpec(Part):
    """One tier: a model of a family, in the cloud or at the edge."""

    role: Literal["cloud", "edge"]
    family: str = Field(description="model family, an entry point of the group samespace.models")
    dim: int = Field(
        ge=2, le=65536, description="dimension of the embedding; an edge model's may be less than the cloud model's"
    )
    preprocess: Preprocess = Field(description="how a picture becomes the model's input; at least its size")
    arguments: dict[str, Any] = Field(default_factory=dict, description="of the family's builder, beyond dim and image_size")
    compatible: bool = Field(
        default=True, description="false: a control, trained without any term that involves the cloud model"
    )
    learning_rate: float | None = Field(default=None, gt=0, description="this model's own peak rate")
    losses: Losses | None = Field(
        default=None,
        description="this model's own objective, in place of the recipe's losses (an edge) or of the cosine softmax",
    )
    prefixes: Prefixes | None = Field(default=None, description="this model's own, in place of the recipe's; [] for none")
    start_as: TierName | None = Field(
        default=None, description="start from the weights that the model of this name starts from: for paired comparisons"
    )
    shares: TierName | None = Field(
        default=None, description="a slimmable family: use the first channels of the network of the model of this name"
    )
    run: Path | None = Field(
        default=None, description="of a cloud model: a finished run whose cloud model it is, frozen; its space is joined"
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="beside run: class of this recipe -> name by which the run knows it, where they differ",
    )
    start_from: Path | None = Field(
        default=None, description="of an edge model: a finished run; go on from the weights of its model of the same name"
    )
    quantise: QuantiseSpec | None = Field(
        default=None, description="learn as int8 computes, with rounded weights and activations; needs start_from"
    )
    weights_sha256: str | None = Field(default=None, description="of that run's model; filled in when the recipe is read")

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

    @model_validator(mode="after")
    def _founder(self) -> Self:
        if self.run is not None:
            if self.role != "cloud":
                raise ValueError("run names the finished run of a cloud model; an edge model is trained here: leave it out")
            if self.losses is not None or self.start_as is not None:
                raise ValueError("the cloud model of a finished run is not trained again: leave out losses and start_as")
        if self.labels and self.run is None:
            raise ValueError("labels names the classes of a finished run: set run, or leave it out")
        if self.start_from is not None:
            if self.role == "cloud":
                raise ValueError("start_from is for edge models; the cloud model of a finished run is named by run, and frozen")
            if self.start_as is not None or self.shares is not None:
                raise ValueError("start_from gives the model's first weights: leave out start_as and shares")
        if self.quantise is not None and self.start_from is None:
            raise ValueError("quantise fine-tunes a model that is trained already: name its run with start_from")
        return self

    @property
    def builder_arguments(self) -> dict[str, Any]:
        """All keyword arguments of the family's builder."""
        return {**self.arguments, "dim": self.dim, "image_size": self.preprocess.size}


class FlipSpec(Part):
    """What it costs when an upgrade takes a right answer away; weighs the terms that keep right answers."""

    costs: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="class, or key of one training picture -> cost; all else costs 1"
    )


class SoftmaxSpec(Part):
    """The cosine softmax of the cloud model and the controls; losses with options of these names take them, too."""

    scale: float = Field(default=16.0, gt=0, description="inverse temperature of the cosines")
    margin: float = Field(default=0.0, ge=0, lt=2, description="subtracted from the true class's cosine")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class OptimiserSpec(Part):
    """AdamW, one cycle."""

    learning_rate: float = Field(default=3e-3, gt=0, description="peak; a model may have its own")
    weight_decay: float = Field(default=0.02, ge=0)
    warmup: float = Field(default=0.2, gt=0, lt=1, description="share of the steps in which the rate climbs")
