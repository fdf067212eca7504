"""The ordinary recipes that a search consists of: the supernet's, and that of the winners."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samespace.cloud.data import ImageSet, Split, make_split, open_dataset
from samespace.cloud.recipe import Recipe, load_recipe
from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.search.config import Finalists, Search, SupernetSpec
from samespace.edge.search import Architecture
from samespace.sdk.errors import ConfigError

__all__ = ["check_run", "retrain_recipe", "supernet_recipe"]


def check_run(search: Search) -> tuple[Recipe, ImageSet, Split]:
    """Recipe and pictures of the run that the partner comes from, seen to be fit for a search; no picture is decoded.

    Raises:
        ConfigError: the run is not complete, or has no validation classes.
    """
    file = search.run / "recipe.toml"
    if not (search.run / "matrices.json").exists():
        raise ConfigError(f"{search.run}: is not complete; finish it with 'samespace train {file} -o {search.run}'")
    recipe = load_recipe(file, "full")
    images = open_dataset(recipe.data)
    split = make_split(recipe.data, images)
    if not split.validation_query or not split.validation_gallery:
        raise ConfigError(
            f"{file}: its data has no validation classes, by which candidates could be judged; set data.validation_percent "
            f"(now {recipe.data.validation_percent}) and train the run again"
        )
    if search.space.image_size > recipe.data.source_size:
        raise ConfigError(
            f"space.image_size = {search.space.image_size} is more than the {recipe.data.source_size} pixels at which the run "
            f"{search.run} keeps its pictures; lower it, or train a run with a larger data.source_size"
        )
    return recipe, images, split


def supernet_recipe(search: Search, base: Recipe, where: Path) -> Recipe:
    """The cloud model of the run, and one edge model that is the supernet.

    Raises:
        ConfigError: losses that do not fit.
    """
    arguments = search.space.model_dump(mode="json", exclude={"dim", "image_size"})
    models = {"supernet": _edge(search, base, "mobile_supernet", arguments)}
    return _recipe(search, base, "nas-supernet", search.supernet, search.supernet.seed, models, where)


def retrain_recipe(search: Search, base: Recipe, winners: Mapping[str, Architecture], seed: int, where: Path) -> Recipe:
    """The cloud model of the run, the winners by name, and beside each its control, which starts from the same weights.

    Raises:
        ConfigError: losses that do not fit.
    """
    models: dict[str, Any] = {}
    for name, architecture in winners.items():
        arguments = {
            key: value for key, value in architecture.arguments(search.space).items() if key not in ("dim", "image_size")
        }
        models[name] = _edge(search, base, "mobile", arguments)
        if search.finalists.controls:
            models[f"{name}-control"] = {**models[name], "compatible": False, "start_as": name}
    return _recipe(search, base, "nas-retrain", search.finalists, seed, models, where)


def _edge(search: Search, base: Recipe, family: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    preprocess = base.models[base.cloud].preprocess.model_copy(update={"size": search.space.image_size})
    return {
        "role": "edge",
        "family": family,
        "dim": search.space.dim,
        "preprocess": preprocess.model_dump(mode="json"),
        "arguments": dict(arguments),
    }


def _recipe(
    search: Search,
    base: Recipe,
    name: str,
    spec: SupernetSpec | Finalists,
    seed: int,
    models: Mapping[str, Any],
    where: Path,
) -> Recipe:
    of_run = base.resolved()
    content = {
        "name": name,
        "mode": "sequential",
        "seed": seed,
        "steps": spec.steps,
        "batch": spec.batch,
        "device": search.device,
        "checkpoint_every": spec.checkpoint_every,
        "log_every": min(base.log_every, spec.steps),
        **{key: of_run[key] for key in ("data", "augment", "softmax")},
        "optimiser": {**of_run["optimiser"], "learning_rate": spec.learning_rate},
        "losses": {loss: item.written() for loss, item in spec.losses.items()},
        "models": {base.cloud: {"role": "cloud", "run": str(search.run)}, **models},
    }
    return parse_recipe(content, where)
