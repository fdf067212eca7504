"""Reading finished runs as generations of one model, all measured on what the newest run was tested on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from samespace.cloud.upgrades.measure import Generation, Pictures, measure_chain
from samespace.cloud.upgrades.report import UpgradeReport
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import ModelRecord

__all__ = ["report_of"]


def report_of(runs: Sequence[Path], control: Path | None = None, reproduce: str = "") -> UpgradeReport:
    """Measure finished runs.

    Args:
        runs: oldest first. The first may be an upgrade itself: then the model that it began from comes before it.
        control: a run in which the newest model was trained on the same data without a compatibility term.
        reproduce: command that measures it again.

    Raises:
        ConfigError: fewer than two models, a run that upgrades another model than the one before it, or one that is not
            complete.
        IntegrityError: weights that are not those of their record.
    """
    from samespace.cloud.recipe import load_recipe

    newest = load_recipe(runs[-1] / "recipe.toml", "full")
    if newest.successor is None:
        raise ConfigError(f"{runs[-1]}: upgrades nothing; train it with 'samespace train --upgrade-from OLD_RUN'")
    pictures = _pictures(runs[-1])
    chain = [(runs[-1], newest.cloud), (runs[-1], newest.successor)]
    later, later_id = runs[-1], _record(runs[-1], newest.cloud).model_id
    for run in reversed(runs[:-1]):
        recipe = load_recipe(run / "recipe.toml", "full")
        latest = recipe.successor or recipe.cloud
        if _record(run, latest).model_id != later_id:
            raise ConfigError(f"{later}: upgrades {later_id}, which is not the model of {run}; give the runs oldest first")
        if recipe.successor is not None:
            chain.insert(0, (run, recipe.cloud))
            later, later_id = run, _record(run, recipe.cloud).model_id
    names = _distinct([_record(run, tier).name for run, tier in chain])
    generations = [_generation(name, run, tier, runs[-1]) for name, (run, tier) in zip(names, chain, strict=True)]
    twin = None
    if control is not None:
        recipe = load_recipe(control / "recipe.toml", "full")
        twin = _generation("control", control, recipe.successor or recipe.cloud, runs[-1])
    return measure_chain(generations, pictures, twin, reproduce)


def _generation(name: str, run: Path, tier: str, newest: Path) -> Generation:
    rows = _embeddings(run / "embeddings" / f"{tier}.safetensors") if run == newest else _embedded(run, tier, newest)
    return Generation(name, _record(run, tier).model_id, rows["query"], rows["gallery"])


def _embedded(run: Path, tier: str, newest: Path) -> dict[str, npt.NDArray[np.float32]]:
    """What an older run's model makes of the newest run's test pictures: it was tested on others, or on a part of them."""
    from samespace.cloud.evaluation import embed
    from samespace.cloud.recipe import load_recipe
    from samespace.cloud.training.data import load_training_data
    from samespace.export.run import read_run

    data = load_training_data(load_recipe(newest / "recipe.toml", "full"))
    model = read_run(run).models[tier]
    sides = {"query": data.split.test_query, "gallery": data.split.test_gallery}
    preprocess, network = model.record.preprocess, model.build()
    return {side: embed(network, data.prepared(part, preprocess), preprocess) for side, part in sides.items()}


def _pictures(run: Path) -> Pictures:
    file = run / "items.json"
    try:
        test = json.loads(file.read_bytes())["test"]
        return Pictures(test["query"], test["gallery"]["class"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({error}); the run is not complete, or of an older samespace: train it again"
        ) from None


def _embeddings(file: Path) -> dict[str, npt.NDArray[np.float32]]:
    try:
        return safetensors.numpy.load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({error}); the run is not complete, or of an older samespace: train it again"
        ) from None


def _record(run: Path, tier: str) -> ModelRecord:
    file = run / "models" / f"{tier}.json"
    try:
        return ModelRecord.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); the run is not complete, train it again") from None


def _distinct(names: Sequence[str]) -> list[str]:
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, 1)]
