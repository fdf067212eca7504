"""From a recipe to a finished run."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from samespace.cloud.recipe import Recipe
from samespace.cloud.training.data import load_training_data
from samespace.cloud.training.device import open_world
from samespace.cloud.training.partners import read_founder
from samespace.cloud.training.results import TrainedRun, read_results, write_results
from samespace.cloud.training.run import RunDirectory
from samespace.cloud.training.tier import check_models
from samespace.cloud.training.trainer import Trainer

__all__ = ["train"]


def train(recipe: Recipe, folder: Path | str, *, resume: bool = True) -> TrainedRun | None:
    """Train all tiers of a recipe, measure them, and write the run's folder.

    A run that was interrupted, however hard, goes on from its last checkpoint and ends with the weights it would have had. A
    run that is complete is read, not trained again. Under torchrun all processes call it; the first one writes.

    Args:
        recipe: see :func:`samespace.cloud.recipe.load_recipe`.
        folder: of the run; made when it is not there.
        resume: False starts over and discards what an earlier run left in the folder.

    Returns:
        What was trained; None in all processes but the first.

    Raises:
        ConfigError: models that cannot be built, a folder of another recipe, training that diverged.
        DataError: pictures that cannot be used.
        KeyboardInterrupt: Ctrl-C; SystemExit: SIGTERM. A checkpoint was written before.
    """
    directory = RunDirectory(folder)
    with open_world(recipe.device) as world:
        world.share(recipe.batch)
        if world.first:
            directory.check_folder(recipe, resume=resume)
        if world.any(world.first and resume and directory.matrices.exists()):
            return read_results(recipe, directory) if world.first else None
        check_models(recipe)
        founder = read_founder(recipe)
        if not world.first:
            world.wait()  # and find the pictures in the cache
        data = load_training_data(recipe)
        if world.first:
            world.wait()
        with directory.opened(recipe, resume=resume) if world.first else nullcontext():
            trainer = Trainer(recipe, data, world, directory, founder)
            trainer.run()
            if world.first:
                write_results(recipe, data, trainer.tiers, directory, founder)
            world.wait()
        return read_results(recipe, directory) if world.first else None
