"""The child process of :mod:`samespace.export.conversion`: ``python -m samespace.export.worker JOB_FOLDER...``.

Prints one line of JSON after each job: ``{}``, or ``{"error": TEXT, "expected": whether the text says it all}``; and during a
long one ``{"doing": TEXT}``. What a converter prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from samespace.export.conversion import write_conversion
from samespace.export.formats.base import Conversion, Exporter
from samespace.export.graph import DeviceGraph
from samespace.export.options import ExportOptions
from samespace.export.quantisation.choose import Search, choose_int8
from samespace.export.quantisation.judge import HeldOut
from samespace.export.run import load_model
from samespace.sdk.errors import SamespaceError
from samespace.sdk.identity import ModelRecord

__all__ = ["main", "run_job"]

#: Model id -> graph, of the last model only.
_GRAPHS: dict[str, DeviceGraph] = {}


def main(folders: list[str]) -> None:
    """Convert job after job; ends at the first failure."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    for folder in folders:
        try:
            write_conversion(Path(folder) / "result", run_job(Path(folder), lambda text: answer({"doing": text})))
        except SamespaceError as error:
            return answer({"error": str(error), "expected": True})
        except Exception as error:
            traceback.print_exc()
            return answer({"error": f"{type(error).__name__}: {error}".strip(), "expected": False})
        answer({})
    return None


def run_job(folder: Path, say: Callable[[str], object] = lambda text: None) -> Conversion:
    """Convert the model of one job folder."""
    job = json.loads((folder / "job.json").read_text())
    record = ModelRecord.model_validate(job["record"])
    module, _, attribute = job["exporter"].partition(":")
    exporter: Exporter = getattr(importlib.import_module(module), attribute)()
    graph, options = _graph(record, folder / "weights.safetensors", job["name"]), _options(folder, job["options"])
    held_out = _held_out(folder / "held_out.npz")
    if held_out is None or job["precision"] != "int8":
        return exporter.convert(graph, job["precision"], options)
    return choose_int8(exporter, graph, options, held_out, record.dim, Search(**job["search"]), say)


def _graph(record: ModelRecord, weights: Path, name: str) -> DeviceGraph:
    """The same object for one model's jobs, so that an exporter may remember what it made of it."""
    if record.model_id not in _GRAPHS:
        _GRAPHS.clear()
        _GRAPHS[record.model_id] = DeviceGraph(load_model(record, weights.read_bytes(), name), record.preprocess)
    return _GRAPHS[record.model_id]


def _options(folder: Path, values: dict[str, Any]) -> ExportOptions:
    file = folder / "calibration.npy"
    pictures = np.load(file, allow_pickle=False) if file.exists() else None
    return ExportOptions(**{**values, "float_layers": tuple(values["float_layers"])}, calibration=pictures)


def _held_out(file: Path) -> HeldOut | None:
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        return HeldOut(**{name: arrays[name] for name in arrays.files})


if __name__ == "__main__":
    main(sys.argv[1:])
