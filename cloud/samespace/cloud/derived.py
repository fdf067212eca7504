"""A run with one more model that nobody trained: made of released ones, for a space that is there already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from samespace.export.run import Run, RunModel
from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_directory

__all__ = ["write_derived"]


def write_derived(output: Path, space: Run, model: RunModel) -> None:
    """Write a run of the space's founder and the model; the space's probes and gallery judge its export.

    Raises:
        ConfigError: the folder exists.
    """
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another folder")
    founder = space.cloud
    with atomic_directory(output) as folder:
        (folder / "models").mkdir()
        for name, record, content in (("cloud", founder.record, founder.weights), (model.name, model.record, model.weights)):
            (folder / "models" / f"{name}.json").write_text(record.model_dump_json(indent=2) + "\n")
            (folder / "models" / f"{name}.safetensors").write_bytes(content)
        (folder / "space.json").write_text(space.space.model_dump_json(indent=2) + "\n")
        for part in ("probes", "calibration"):
            if (space.path / part).is_dir():
                shutil.copytree(space.path / part, folder / part)
        (folder / "matrices.json").write_text(json.dumps([]) + "\n")
