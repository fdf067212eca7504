"""From a finished run to one whose edge model was fine-tuned for int8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from samespace.cloud.quantisation.recipe import Settings, quantise_recipe
from samespace.cloud.training import RunDirectory, train
from samespace.sdk.errors import ConfigError

__all__ = ["quantise"]


def quantise(
    run: Path, model: str, folder: Path, settings: Settings | None = None, *, resume: bool = True
) -> dict[str, Any] | None:
    """Fine-tune an edge model under fake quantisation, against the float cloud model's head and embeddings.

    ``folder`` becomes a run of the frozen cloud model and the fine-tuned edge model. The weights are float: an export quantises
    them as usual. An interrupted fine-tuning goes on where it was.

    Args:
        run: folder of a finished run; it is only read.
        model: name of the edge model.
        folder: where the new run goes.
        settings: None for the defaults.
        resume: False discards what is in ``folder``.

    Returns:
        What int8 costs before and after, see :func:`samespace.cloud.training.quantised_cost.quantised_costs`, of this model;
        None in all processes under torchrun but the first.

    Raises:
        ConfigError: as :func:`~samespace.cloud.quantisation.recipe.quantise_recipe` and :func:`samespace.cloud.training.train`.
        IntegrityError: damaged weights.
    """
    if folder.resolve() == run.resolve():
        raise ConfigError(f"{folder}: is the run that is fine-tuned, which stays as it is; name another folder with -o")
    if train(quantise_recipe(run, model, settings or Settings()), folder, resume=resume) is None:
        return None
    return json.loads(RunDirectory(folder).quantisation.read_bytes())[model]
