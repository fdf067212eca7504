"""Training the supernet: an ordinary training run, but for the results, which would be about no architecture in particular.

They are also the only part of a run that looks at test classes.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from samespace.cloud.recipe import Recipe
from samespace.cloud.training import RunDirectory
from samespace.cloud.training.data import TrainingData
from samespace.cloud.training.device import open_world
from samespace.cloud.training.partners import Founder
from samespace.cloud.training.trainer import Trainer
from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_write

__all__ = ["train_supernet"]


def train_supernet(recipe: Recipe, data: TrainingData, founder: Founder, folder: Path) -> Path:
    """Train, or go on from the last checkpoint; the weights are written when it is done.

    Returns:
        The file of the weights.

    Raises:
        ConfigError: another supernet's folder, training that diverged, or several processes.
        KeyboardInterrupt: Ctrl-C; SystemExit: SIGTERM. A checkpoint was written before.
    """
    directory = RunDirectory(folder)
    weights = directory.models / "supernet.safetensors"
    directory.check_folder(recipe, resume=True)
    if weights.exists():
        return weights
    with open_world(recipe.device) as world:
        if world.size > 1:
            raise ConfigError("a search is one process, which starts its own: call 'samespace nas' without torchrun")
        with directory.opened(recipe, resume=True):
            trainer = Trainer(recipe, data, world, directory, founder)
            trainer.run()
            state = trainer.tiers["supernet"].model.state_dict()
            content = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            atomic_write(weights, safetensors.torch.save(content))
    return weights
