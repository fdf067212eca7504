"""What is trained: models, data, losses and settings, checked against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from samespace.cloud.data.augment import Augment
from samespace.cloud.data.config import DataConfig
from samespace.cloud.losses.base import Need
from samespace.cloud.losses.registry import loss_class, option_names
from samespace.cloud.recipe.joint import JointSpec, check_joint, check_shares, head_users
from samespace.cloud.recipe.parts import (
    FlipSpec,
    Losses,
    LossSpec,
    ModelSpec,
    OptimiserSpec,
    Part,
    Prefixes,
    SoftmaxSpec,
    TierName,
)
from samespace.cloud.toml import to_toml
from samespace.sdk.identity import canonical_json, digest
from samespace.sdk.preprocess import Preprocess

__all__ = ["Recipe"]

_OWN = "cosine_softmax"


def _default_losses(mode: str | None) -> dict[str, LossSpec]:
    """Where the cloud model stands still, what measured best; in one loop with it, each model classifies for itself, too."""
    regression = {"regression": LossSpec(weight=5.0)}
    if mode == "sequential":
        return {"asymmetric_margin": LossSpec(weight=5.0), **regression}
    return {_OWN: LossSpec(), "partner_head": LossSpec(), **regression}


class Recipe(Part):
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
    joint: JointSpec = Field(default_factory=JointSpec)
    flips: FlipSpec = Field(default_factory=FlipSpec)
    teachers: tuple[Path, ...] = Field(
        default=(), description="finished runs of the same data: the ensemble that logit_difference keeps a model near"
    )
    prefixes: Prefixes = Field(
        default=(), description="Matryoshka: widths at which embeddings are trained and measured, too, each prefix on its own"
    )
    losses: Losses = Field(
        default_factory=lambda given: _default_losses(given.get("mode")),
        description="of the compatible edge models; by default what docs/heterogeneous.md shows to be best",
    )
    models: dict[TierName, ModelSpec]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._check_clouds()
        cloud = self.models[self.cloud]
        check_shares(self.models, self.mode)
        check_joint(self.joint, self.mode, self.cloud, self.models, {name: self.objective(name) for name in self.models})
        for name, model in self.models.items():
            if model.dim > cloud.dim and name != self.successor and model.compatible:
                raise ValueError(
                    f"models.{name}: dim = {model.dim}, but the cloud model {self.cloud!r} has dim = {cloud.dim}; a narrower "
                    "model is compared on the first coordinates, a wider one has nothing to compare the rest with; "
                    f"set dim <= {cloud.dim}"
                )
            self._check_pictures(name, model, self.cloud)
            self._check_objective(name, model)
            if model.start_as is not None and model.start_as not in self.models:
                known = ", ".join(self.models)
                raise ValueError(f"models.{name}: start_as = {model.start_as!r} is no model of this recipe; there are: {known}")
            if model.start_as is not None and self.models[model.start_as].start_from is not None:
                raise ValueError(
                    f"models.{name}: start_as = {model.start_as!r}, which goes on from a finished run; give this one start_from"
                )
            if wide := [width for width in self.model_prefixes(name) if width >= model.dim]:
                raise ValueError(
                    f"models.{name}: the prefix {wide[0]} is not narrower than its dim = {model.dim}; "
                    f"leave it out, or give the model prefixes of its own"
                )
        return self

    def _check_clouds(self) -> None:
        clouds = {name: model for name, model in self.models.items() if model.role == "cloud"}
        finished = [name for name, model in clouds.items() if model.run is not None]
        found = ", ".join(clouds) or "none"
        if len(clouds) != 1 and not (len(clouds) == 2 and len(finished) == 1):
            raise ValueError(
                "models: exactly one must have role = 'cloud', which founds the space, or two: that of a finished run "
                f"(run = ...) and its successor; got {found}"
            )
        for name, model in clouds.items():
            if not model.compatible:
                raise ValueError(f"models.{name}: compatible = false is for edge models; a control of a successor is one, too")
        if finished and self.mode != "sequential":
            raise ValueError(f"models.{finished[0]}: the cloud model of a finished run stands still: set mode = 'sequential'")

    def _check_pictures(self, name: str, model: ModelSpec, cloud: str) -> None:
        wrong = [
            key
            for key in ("fit", "background")
            if getattr(model.preprocess, key) != getattr(self.models[cloud].preprocess, key)
        ]
        if wrong:
            raise ValueError(
                f"models.{name}: preprocess.{wrong[0]} differs from that of {cloud!r}; all models of a recipe "
                "learn from the same augmented picture: give them the same"
            )
        if model.preprocess.size > self.data.source_size:
            raise ValueError(
                f"models.{name}: preprocess.size = {model.preprocess.size} is more than data.source_size = "
                f"{self.data.source_size}, at which training pictures are kept; raise data.source_size"
            )

    def _check_objective(self, name: str, model: ModelSpec) -> None:
        losses = {loss: loss_class(loss) for loss in self.objective(name)}
        needing = [loss for loss, kind in losses.items() if kind.needs - {Need.TEACHERS}]
        # What looks at feature maps alone says nothing about where embeddings lie.
        joining = [loss for loss in needing if losses[loss].on_embedding and losses[loss].joins]
        stationary = [loss for loss, kind in losses.items() if kind.stationary]
        if name == self.cloud and needing:
            raise ValueError(f"models.{name}: the cloud model has no partner that {needing[0]} could learn from; leave it out")
        bound = [*(loss for loss in needing if losses[loss].joins), *stationary]
        if not model.compatible and bound:
            raise ValueError(
                f"models.{name}: compatible = false, but {bound[0]} would make it compatible; leave one of the two out"
            )
        taught = [loss for loss, kind in losses.items() if Need.TEACHERS in kind.needs]
        if taught and not self.teachers:
            raise ValueError(f"models.{name}: {taught[0]} needs teachers = [...], finished runs of the same data")
        staged = [loss for loss in needing if Need.STAGES in losses[loss].needs]
        if model.quantise is not None and staged:
            raise ValueError(f"models.{name}: {staged[0]} looks at feature maps, which quantise does not give; leave it out")
        still = [loss for loss in needing if Need.GALLERY in losses[loss].needs]
        if still and self.mode == "joint":
            raise ValueError(
                f"models.{name}: {still[0]} needs a finished cloud model's gallery: set mode = 'sequential', or leave it out"
            )
        joins = (
            joining or set(stationary) & set(self.objective(self.cloud)) or (self.joint.shared_head and name in self.head_users)
        )
        if name != self.cloud and model.compatible and not joins:
            raise ValueError(
                f"models.{name}: none of its losses involves the cloud model, so it would not join its space; add partner_head "
                "or regression, or set compatible = false"
            )

    @property
    def cloud(self) -> str:
        """Name of the cloud model that founds the space: where there are two, that of the finished run."""
        clouds = [name for name, model in self.models.items() if model.role == "cloud"]
        return min(clouds, key=lambda name: self.models[name].run is None)

    @property
    def successor(self) -> str | None:
        """Name of the cloud model that is trained here into the space of a finished run's: an upgrade; else None."""
        return next((name for name, model in self.models.items() if model.role == "cloud" and name != self.cloud), None)

    def partner(self, name: str) -> str | None:
        """The model that one learns from: the cloud model; of an upgrade's edge models its successor; None for the cloud."""
        if name == self.cloud:
            return None
        return self.cloud if name == self.successor or self.successor is None else self.successor

    @property
    def edges(self) -> dict[str, ModelSpec]:
        """The edge models, controls among them."""
        return {name: model for name, model in self.models.items() if model.role == "edge"}

    @property
    def source_preprocess(self) -> Preprocess:
        """What makes the training pictures, before augmentation; each model then sees them at its own size."""
        return self.models[self.cloud].preprocess.model_copy(update={"size": self.data.source_size})

    def objective(self, name: str) -> dict[str, LossSpec]:
        """The terms of one model: its own, or the recipe's; of the cloud model and of controls, the cosine softmax.

        Of a successor, that and the old classifier: BCT (Shen et al., CVPR 2020).
        """
        model = self.models[name]
        if model.losses is not None:
            return model.losses
        if name == self.successor:
            return {_OWN: LossSpec(), "partner_head": LossSpec()}
        return self.losses if model.role == "edge" and model.compatible else {_OWN: LossSpec()}

    def terms(self, name: str) -> dict[str, tuple[float, dict[str, Any]]]:
        """The objective of one model: loss -> weight and options, the shared settings of the softmax filled in."""
        shared = self.softmax.model_dump()
        return {
            loss: (spec.weight, {**{key: shared[key] for key in option_names(loss) if key in shared}, **spec.options})
            for loss, spec in self.objective(name).items()
        }

    @property
    def head_users(self) -> tuple[str, ...]:
        """The models that classify by one set of class weights where ``[joint]`` shares the head, the cloud model first."""
        return head_users(self.cloud, self.models, {name: self.objective(name) for name in self.models})

    def needs(self, name: str) -> frozenset[Need]:
        """What a model's losses ask of the cloud model."""
        return frozenset().union(*(loss_class(loss).needs for loss in self.objective(name)))

    def model_prefixes(self, name: str) -> tuple[int, ...]:
        """The Matryoshka prefixes that one model is trained for."""
        own = self.models[name].prefixes
        return self.prefixes if own is None else own

    def learning_rate(self, name: str) -> float:
        """Peak rate of one model."""
        return self.models[name].learning_rate or self.optimiser.learning_rate

    def resolved(self) -> dict[str, Any]:
        """The recipe with all defaults filled in, plain values, in the form in which it is written."""
        content = self.model_dump(mode="json")
        content["losses"] = {name: spec.written() for name, spec in self.losses.items()}
        for name, model in self.models.items():
            if model.losses is not None:
                content["models"][name]["losses"] = {loss: spec.written() for loss, spec in model.losses.items()}
        return content

    @property
    def digest(self) -> str:
        """SHA-256 of all that the weights depend on: where it runs, how often it saves and where things lie is left out."""
        resolved = self.resolved()
        # A key that is younger than the first runs counts where it is used.
        left_out = ["device", "checkpoint_every", "log_every", *(() if self.teachers else ("teachers",))]
        left_out += () if self.flips.costs else ("flips",)
        content = {key: value for key, value in resolved.items() if key not in left_out}
        content["models"] = {name: _lasting(model) for name, model in resolved["models"].items()}
        return digest(canonical_json(content))

    def to_toml(self) -> str:
        """As a file that ``load_recipe`` reads to an equal recipe; sizes are already applied."""
        return to_toml(self.resolved())


def _lasting(model: dict[str, Any]) -> dict[str, Any]:
    """What a model's weights depend on; a key that is younger than the first runs counts where it is used."""
    young = [key for key in ("quantise", "labels") if not model[key]]
    return {key: value for key, value in model.items() if key not in ("run", "start_from", *young)}
