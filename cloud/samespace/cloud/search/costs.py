"""Latency and file size, measured on exported artifacts: of single parts for the table, of finalists whole.

A part is exported alone (torch's tracing exporter, some 50 ms; the project's own takes seconds) and run by onnxruntime on one
thread. From both its time and its size that of a next to empty graph is taken off, and put back once for the whole network. The
prediction of a network is the sum of its parts. It leaves out what happens between parts (layout changes, caches), which is
why finalists are measured whole and the error of the prediction is reported.
"""

from __future__ import annotations

import io
import json
import statistics
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samespace.cloud.search.parts import Part, parts_of
from samespace.edge.search import Architecture, SearchSpace
from samespace.sdk.cli.progress import progress
from samespace.sdk.evidence import describe_machine
from samespace.sdk.files import atomic_write
from samespace.sdk.runtimes.onnx import load_onnxruntime, open_session

__all__ = ["CostTable", "Measured", "latency_ms"]

#: Key of the next to empty graph.
_EMPTY = "empty"
#: Rounds of so many seconds each, at least; the fastest round's median counts, since other processes only ever slow one down.
_ROUNDS, _ROUND_SECONDS = 3, 0.003
#: Parts between two writes of the table.
_SAVE_EVERY = 100


class Measured(NamedTuple):
    """What an artifact costs."""

    latency_ms: float
    file_bytes: float


class CostTable:
    """``costs.json``: machine and onnxruntime -> part -> latency and bytes; measured when first asked for, once.

    Args:
        path: of the file.
        space: whose parts are measured.
    """

    def __init__(self, path: Path, space: SearchSpace) -> None:
        self.path, self.space = path, space
        self.machine = f"{describe_machine()}, onnxruntime {load_onnxruntime().__version__}, 1 thread"
        self._all: dict[str, dict[str, list[float]]] = json.loads(path.read_bytes()) if path.exists() else {}
        self._known = self._all.setdefault(self.machine, {})
        self._unsaved = 0
        self.seconds = 0.0

    def __len__(self) -> int:
        return len(self._known)

    def predict(self, architecture: Architecture) -> Measured:
        """The sum of the parts; measures those that are not known yet."""
        parts = parts_of(architecture, self.space)
        empty = self._of(_EMPTY, None)
        found = [self._of(part.key, part) for part in parts]
        return Measured(
            empty.latency_ms + sum(max(0.0, one.latency_ms - empty.latency_ms) for one in found),
            round(empty.file_bytes + sum(max(0.0, one.file_bytes - empty.file_bytes) for one in found)),
        )

    def measure_all(self, architectures: Iterable[Architecture]) -> None:
        """Measure what these need, with progress, and save."""
        needed = {part.key: part for one in architectures for part in parts_of(one, self.space)}
        missing = [part for key, part in needed.items() if key not in self._known]
        self._of(_EMPTY, None)
        if missing:
            with progress("Measuring parts", len(missing)) as bar:
                for part in missing:
                    self._of(part.key, part)
                    bar.advance(1, part.key)
        self.save()

    def save(self) -> None:
        """Write down what was measured since the last time."""
        if self._unsaved:
            self._unsaved = 0
            atomic_write(self.path, json.dumps(self._all, indent=1) + "\n")

    def _of(self, key: str, part: Part | None) -> Measured:
        if key not in self._known:
            began = time.perf_counter()
            module, example = (part.module(), part.example()) if part else (nn.ReLU(), torch.zeros(1, 4, 1, 1))
            data = _exported(module, example)
            self._known[key] = [latency_ms(data, example.numpy(), key), len(data)]
            self.seconds += time.perf_counter() - began
            self._unsaved += 1
            if self._unsaved >= _SAVE_EVERY:
                self.save()
        return Measured(*self._known[key])


def latency_ms(model: bytes, image: npt.NDArray[Any], name: str) -> float:
    """Median milliseconds of one run by onnxruntime on one thread: of the fastest of some rounds.

    Args:
        model: an ONNX graph with one input.
        image: what it is fed.
        name: how messages call it.

    Raises:
        RuntimeFailure: onnxruntime refuses it.
    """
    session = open_session(model, name, threads=1)
    feed = {session.get_inputs()[0].name: image}

    def once() -> float:
        began = time.perf_counter()
        session.run(None, feed)
        return time.perf_counter() - began

    warm = min(once() for _ in range(4))
    runs = int(np.clip(_ROUND_SECONDS / warm, 7, 200))
    return 1e3 * min(statistics.median(once() for _ in range(runs)) for _ in range(_ROUNDS))


def _exported(module: nn.Module, example: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one
        torch.onnx.export(
            module.eval().requires_grad_(False),
            (example,),
            buffer,  # pyright: ignore[reportArgumentType] - the tracing exporter takes it
            dynamo=False,
            opset_version=18,
            input_names=["x"],
            output_names=["y"],
        )
    return buffer.getvalue()
