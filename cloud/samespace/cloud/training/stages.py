"""The stages of a run: which tiers train in one loop, and which one stands frozen beside them."""

from __future__ import annotations

from dataclasses import dataclass

from samespace.cloud.recipe import Recipe

__all__ = ["Stage", "stages_of"]


@dataclass(frozen=True)
class Stage:
    """One loop over ``recipe.steps`` batches.

    Attributes:
        name: goes into the log and into every seed.
        trained: tiers that learn; a partner that learns too comes first.
        partner: the tier whose space the others join; None when no tier of the stage needs one.
    """

    name: str
    trained: tuple[str, ...]
    partner: str | None


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """One stage for joint mode; for sequential mode the cloud model, then all edge models beside it, frozen.

    A cloud model that comes from a finished run has no stage of its own; its successor learns beside it, frozen.
    """
    cloud, successor, edges = recipe.cloud, recipe.successor, tuple(recipe.edges)
    if recipe.mode == "joint":
        return (Stage("joint", (cloud, *edges), cloud),)
    if successor is not None:
        first = (Stage("cloud", (successor,), cloud),)
    else:
        first = () if recipe.models[cloud].run is not None else (Stage("cloud", (cloud,), None),)
    return (*first, Stage("edges", edges, successor or cloud)) if edges else first
