"""Reading a recipe.

An unknown key is refused, with the key that was probably meant. Sizes (``--size``, ``SAMESPACE_SIZE``) are tables of overrides
in the recipe itself, such as ``[sizes.ci]``, merged over the rest before it is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from samespace.cloud.data.config import Size
from samespace.cloud.recipe.recipe import Recipe
from samespace.cloud.toml import explain, merged, read_toml
from samespace.export.run import read_run
from samespace.sdk.errors import ConfigError

__all__ = ["OLD", "load_recipe", "parse_recipe"]


#: What the cloud model of ``upgrade_from`` is called in the recipe.
OLD = "old"


def load_recipe(path: Path | str, size: str | None = None, upgrade_from: Path | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: TOML file; relative paths in it are relative to its folder.
        size: name of a table of overrides in it, ``[sizes.NAME]``; None takes the environment's ``SAMESPACE_SIZE``.
            ``full``, the default, needs no table.
        upgrade_from: a finished run, whose cloud model becomes this recipe's model ``old``: the recipe's own cloud model is
            trained as its successor, into its space.

    Raises:
        ConfigError: unreadable, unknown or wrong keys, models that do not fit together, no such size, or a run that it
            builds on and that cannot be used.
    """
    path = Path(path)
    content = read_toml(path)
    sizes = content.pop("sizes", {})
    if upgrade_from is not None:
        content = _upgrading(content, upgrade_from.absolute(), path)
    size = size or os.environ.get("SAMESPACE_SIZE") or "full"
    if not isinstance(sizes, dict) or not all(isinstance(table, dict) for table in sizes.values()):
        raise ConfigError(f"{path}: sizes: must be tables of overrides, such as [sizes.ci]")
    if size not in sizes and size != "full":
        there = ", ".join(sorted({"full", *sizes}))
        raise ConfigError(f"{path}: no size {size!r} (--size or SAMESPACE_SIZE); there is {there}; add a table [sizes.{size}]")
    # Every size is read, so that a typo in one shows before the day it is used.
    variants = {name: _sized(merged(content, sizes.get(name, {})), path, name) for name in {"full": None, **sizes}}
    return variants[size]


def parse_recipe(content: dict[str, Any], path: Path, where: str = "") -> Recipe:
    """A recipe from plain values, as they stand in the file ``path``, to whose folder its paths are relative.

    Raises:
        ConfigError: as :func:`load_recipe`; the message begins with ``where``, or the path.
    """
    base = path.absolute().parent
    try:
        recipe = Recipe.model_validate(_with_founder(content, base, where or str(path)))
    except ValidationError as error:
        raise ConfigError(f"{where or path}: {explain(error, Recipe)}") from None
    paths = {name: base / value for name, value in recipe.data if isinstance(value, Path)}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=paths)})


def _upgrading(content: dict[str, Any], old: Path, path: Path) -> dict[str, Any]:
    models = content.get("models")
    if isinstance(models, dict) and OLD in models:
        raise ConfigError(f"{path}: models.{OLD}: is there already; rename it, or leave out --upgrade-from")
    if isinstance(models, dict):
        # Whatever was to be trained in one loop stands beside a model that no longer changes.
        content = {**content, "mode": "sequential", "models": {OLD: {"role": "cloud", "run": str(old)}, **models}}
    return content


def _sized(content: dict[str, Any], path: Path, size: str) -> Recipe:
    data = content.get("data")
    if isinstance(data, dict) and data.get("kind") == "emoji" and size in get_args(Size):
        content = {**content, "data": {"size": size, **data}}
    return parse_recipe(content, path, f"{path} at size {size}" if size != "full" else str(path))


def _with_founder(content: dict[str, Any], base: Path, where: str) -> dict[str, Any]:
    """The content with what stands in the finished runs of ``[models.NAME]`` ``run`` and ``start_from`` filled in."""
    teachers = content.get("teachers")
    if isinstance(teachers, list | tuple):
        content = {**content, "teachers": [str(base / folder) for folder in teachers]}
    models = content.get("models")
    if not isinstance(models, dict):
        return content
    filled = {}
    for name, model in models.items():
        filled[name] = model
        if not isinstance(model, dict):
            continue
        named = next((key for key in ("run", "start_from") if isinstance(model.get(key), str)), None)
        if named is None:
            continue
        folder = base / model[named]
        run = read_run(folder)
        record = (run.newest if named == "run" else run.choose((name,))[0]).record
        found = {
            "family": record.family,
            "dim": record.dim,
            "preprocess": record.preprocess.model_dump(mode="json"),
            "arguments": {key: value for key, value in record.arguments.items() if key not in ("dim", "image_size")},
            "weights_sha256": record.weights_sha256,
        }
        # Values may be given in part or in another notation: what is compared is what they mean.
        for key, value in found.items():
            given = model.get(key, value)
            same = {**value, **given} == value if isinstance(value, dict) and isinstance(given, dict) else given == value
            if not same:
                raise ConfigError(
                    f"{where}: models.{name}.{key} is not that of the run {folder}, which has {value}; leave {key} out: "
                    "it is read from the run"
                )
        filled[name] = {**model, **found, named: str(folder)}
    return {**content, "models": filled}
