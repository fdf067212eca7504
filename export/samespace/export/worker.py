"""The child process of :mod:`samespace.export.conversion`: ``python -m samespace.export.worker JOB_FOLDER...``.

Prints one line of JSON after each job: ``{}``, or ``{"error": TEXT, "expected": whether the text says it all}``. What a
converter prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from samespace.export.conversion import write_conversion
from samespace.export.formats.base import Conversion, Exporter
from samespace.export.graph import DeviceGraph
from samespace.export.options import ExportOptions
from samespace.export.run import load_model
from samespace.sdk.errors import SamespaceError
from samespace.sdk.identity import ModelRecord

__all__ = ["main", "run_job"]


def main(folders: list[str]) -> None:
    """Convert job after job; ends at the first failure."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for folder in folders:
        try:
            write_conversion(Path(folder) / "result", run_job(Path(folder)))
            answer = {}
        except SamespaceError as error:
            answer = {"error": str(error), "expected": True}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".strip(), "expected": False}
        print(json.dumps(answer), file=answers, flush=True)
        if answer:
            return


def run_job(folder: Path) -> Conversion:
    """Convert the model of one job folder."""
    job = json.loads((folder / "job.json").read_text())
    record = ModelRecord.model_validate(job["record"])
    model = load_model(record, (folder / "weights.safetensors").read_bytes(), job["name"])
    module, _, attribute = job["exporter"].partition(":")
    exporter: Exporter = getattr(importlib.import_module(module), attribute)()
    return exporter.convert(DeviceGraph(model, record.preprocess), job["precision"], _options(folder, job["options"]))


def _options(folder: Path, values: dict[str, Any]) -> ExportOptions:
    file = folder / "calibration.npy"
    pictures = np.load(file, allow_pickle=False) if file.exists() else None
    return ExportOptions(**{**values, "float_layers": tuple(values["float_layers"])}, calibration=pictures)


if __name__ == "__main__":
    main(sys.argv[1:])
