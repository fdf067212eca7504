"""How models that are trained together share weights: the table ``[joint]`` and ``models.NAME.shares``."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from samespace.cloud.recipe.parts import Part
from samespace.edge.models import residual, slimmable

if TYPE_CHECKING:
    from samespace.cloud.recipe.parts import ModelSpec

__all__ = ["JointSpec", "check_joint", "check_shares", "head_users", "shared_networks", "width_of"]

_HEAD = "cosine_softmax"


class JointSpec(Part):
    """Between the models that are trained in one loop; after SFSC (Wu et al., CVPR 2023)."""

    weights: Literal["equal", "uncertainty"] = Field(
        default="equal", description="of the models' objectives; uncertainty: learnt, a harder model counts for less"
    )
    project_conflicts: bool = Field(
        default=False, description="take from each model's gradient what opposes another's, where they share parameters"
    )
    shared_head: bool = Field(
        default=False,
        description="one set of class weights, the cloud model's, for the cosine_softmax of all compatible models",
    )


def shared_networks(models: Mapping[str, ModelSpec]) -> dict[str, tuple[str, ...]]:
    """Models whose network others share -> those others, in the recipe's order."""
    owners = dict.fromkeys(model.shares for model in models.values() if model.shares is not None)
    return {owner: tuple(name for name, model in models.items() if model.shares == owner) for owner in owners}


def check_shares(models: Mapping[str, ModelSpec], mode: str) -> None:
    """See that models which share a network can.

    Raises:
        ValueError: they cannot; the message names the model and the mend.
    """
    for name, model in models.items():
        if model.shares is None:
            continue
        owner = models.get(model.shares)
        if owner is None or model.shares == name:
            raise ValueError(
                f"models.{name}: shares = {model.shares!r} is no other model of this recipe; there are: {', '.join(models)}"
            )
        where = f"models.{name}: shares = {model.shares!r}"
        if owner.shares is not None:
            raise ValueError(f"{where}, which itself shares {owner.shares!r}: name that one")
        if model.role == "cloud":
            raise ValueError(f"{where}: the cloud model founds the space; let the edge model share the cloud model's network")
        if owner.role == "cloud" and mode != "joint":
            raise ValueError(f"{where}, the cloud model, which stands still while the edge models learn: set mode = 'joint'")
        if given := [key for key in ("start_as", "learning_rate") if getattr(model, key) is not None]:
            raise ValueError(f"{where}: its weights are those of {model.shares!r}, so leave out {given[0]} here")
        _check_alike(where, model, owner, model.shares)
    for owner, followers in shared_networks(models).items():
        widths = [width_of(models[name]) for name in followers]
        if len(set(widths)) < len(widths):
            raise ValueError(f"models that share {owner!r} have the widths {widths}: give each another width")


def check_joint(
    joint: JointSpec, mode: str, cloud: str, models: Mapping[str, ModelSpec], objectives: Mapping[str, Collection[str]]
) -> None:
    """See that ``[joint]`` has something to act on.

    Args:
        joint: the table.
        mode: of the recipe.
        cloud: name of the cloud model.
        models: of the recipe.
        objectives: model -> names of its losses.

    Raises:
        ValueError: it has not; the message names the key and the mend.
    """
    shares = bool(shared_networks(models))
    if joint != JointSpec() and mode != "joint" and (joint.shared_head or not shares):
        key = "shared_head" if joint.shared_head else "weights" if joint.weights != "equal" else "project_conflicts"
        raise ValueError(
            f"joint.{key} is for models that learn in one loop with the cloud model: set mode = 'joint', or leave it out"
        )
    if joint.project_conflicts and not (joint.shared_head or shares):
        raise ValueError(
            "joint.project_conflicts: no two models share a parameter, so that no gradients could conflict; "
            "set shared_head = true, let a model share another's network (shares = 'NAME'), or leave it out"
        )
    if not joint.shared_head:
        return
    users = head_users(cloud, models, objectives)
    if cloud not in users or len(users) < 2:
        raise ValueError(
            f"joint.shared_head: needs {_HEAD} among the losses of the cloud model and of a compatible edge model; add it, "
            "or leave shared_head out"
        )


def head_users(cloud: str, models: Mapping[str, ModelSpec], objectives: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """The models that classify by the shared head, the cloud model first."""
    using = [name for name, model in models.items() if model.compatible and _HEAD in objectives[name]]
    return tuple(sorted(using, key=lambda name: name != cloud))


def width_of(model: ModelSpec) -> int:
    """The width of a model that shares its network."""
    return _arguments(model)["width"]


def _check_alike(where: str, model: ModelSpec, owner: ModelSpec, owner_name: str) -> None:
    for found, name in ((model, "its own"), (owner, f"that of {owner_name!r}")):
        if found.family != slimmable.FAMILY:
            raise ValueError(
                f"{where}: only the family {slimmable.FAMILY!r} has widths that share weights; {name} is {found.family!r}"
            )
    for key in ("dim", "preprocess", "compatible"):
        if getattr(model, key) != getattr(owner, key):
            raise ValueError(f"{where}: its {key} must be that of {owner_name!r}; only the width may differ")
    own, others = _arguments(model), _arguments(owner)
    if unlike := [key for key in {**own, **others} if key != "width" and own.get(key) != others.get(key)]:
        raise ValueError(f"{where}: arguments.{unlike[0]} must be that of {owner_name!r}; only the width may differ")
    if not width_of(model) < width_of(owner):
        raise ValueError(f"{where}: its width = {width_of(model)} must be less than the {width_of(owner)} of {owner_name!r}")


def _arguments(model: ModelSpec) -> dict[str, Any]:
    """The family's arguments, defaults filled in."""
    parameters = inspect.signature(residual.build).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if parameter.default is not parameter.empty}
    return {**defaults, **model.arguments}
