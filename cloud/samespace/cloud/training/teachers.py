"""Finished runs whose mean logits a model is kept near: the recipe's ``teachers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samespace.cloud.inputs import Views
from samespace.cloud.recipe import load_recipe
from samespace.cloud.training.partners import read_head
from samespace.export.run import read_run
from samespace.sdk.errors import ConfigError
from samespace.sdk.preprocess import Preprocess

__all__ = ["Teacher", "mean_logits", "read_teachers"]


class Teacher(NamedTuple):
    """A classifier that stands still.

    Attributes:
        model: in evaluation mode, without gradient.
        head: ``(classes, d)`` unit rows.
        scale: of cosines into logits, as it was trained.
        preprocess: how it sees a picture.
    """

    model: nn.Module
    head: Tensor
    scale: float
    preprocess: Preprocess


def read_teachers(folders: Sequence[Path], classes: tuple[str, ...], device: torch.device) -> tuple[Teacher, ...]:
    """The cloud models of finished runs.

    Raises:
        ConfigError: no complete run, or one that learnt other classes.
    """
    teachers = []
    for folder in folders:
        run = read_run(folder)
        head, learnt = read_head(folder, run.newest.name)
        if learnt != classes:
            raise ConfigError(f"teachers: the run {folder} learnt other classes than this recipe's data has; use the same data")
        scale = load_recipe(folder / "recipe.toml", "full").softmax.scale
        model = run.newest.build().requires_grad_(False).to(device)
        teachers.append(Teacher(model, F.normalize(head, dim=1).to(device), scale, run.newest.record.preprocess))
    return tuple(teachers)


def mean_logits(teachers: Sequence[Teacher], views: Views) -> Tensor:
    """``(n, classes)``: the mean over teachers, for the batch that ``views`` shows."""
    with torch.no_grad():
        logits = [t.scale * F.normalize(t.model(views.of(t.preprocess)), dim=1) @ t.head.T for t in teachers]
    return torch.stack(logits).mean(0)
