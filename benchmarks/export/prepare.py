"""What both benchmarks of exported artifacts need: a trained run, and a signed bundle of one of its models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from samespace.export.formats import EXPORTERS, exporter_class
from samespace.export.run import Run, RunModel, read_run
from samespace.sdk.bundle import Bundle
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.registry import runtimes_for
from samespace.sdk.signing import TrustStore

__all__ = ["ROOT", "Place", "Subject", "all_artifacts", "choose_model", "exported", "ran", "trained"]

ROOT = Path(__file__).parents[2]
_RECIPE = Path(__file__).with_name("recipe.toml")


@dataclass(frozen=True)
class Place:
    """Where a benchmark works; what is finished there is not made again."""

    folder: Path
    size: str

    @property
    def environment(self) -> dict[str, str]:
        """With keys and trust of its own, not the user's."""
        return {**os.environ, "SAMESPACE_CONFIG_DIR": str(self.folder / "config"), "ORT_DISABLE_TELEMETRY": "1"}


def ran(place: Place, *words: str | Path) -> str:
    """Standard output of a ``samespace`` command; its errors go through."""
    command = [sys.executable, "-c", "from samespace.sdk.cli import main; main()", *map(str, words)]
    return subprocess.run(command, env=place.environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def trained(place: Place, run: Path | None = None) -> Run:
    """The run: a given one, or that of the recipe beside this file, trained where it is not yet."""
    if run is None:
        run = place.folder / "run"
        if not (run / "matrices.json").is_file():
            ran(place, "train", _RECIPE, "-o", run, "--size", place.size)
    return read_run(run)


def choose_model(run: Run, name: str | None) -> RunModel:
    """The named model; else the largest of the edge models: sizes are judged at 2 M parameters."""
    if name is not None:
        return run.choose((name,))[0]
    edge = [model for model in run.choose(()) if model.record.role == "edge"]
    return max(edge or run.choose(()), key=lambda model: len(model.weights))


def all_artifacts() -> list[str]:
    """Every format and precision whose format runs on this machine."""
    return [
        f"{format}-{precision}"
        for format in EXPORTERS
        if runtimes_for(format)
        for precision in exporter_class(format).precisions
    ]


def exported(place: Place, run: Run, model: RunModel, artifacts: list[str], name: str) -> tuple[Bundle, dict[str, Any], float]:
    """Export a model, with ``--force``, so that what fails can be shown to fail.

    Returns:
        The bundle, what the command printed as JSON, and its seconds, start and imports included. An export that is there
        already is not repeated.
    """
    target, log = place.folder / f"{name}.samespace", place.folder / f"{name}.json"
    if not log.is_file():
        if not (place.folder / "config" / "keys").exists():
            ran(place, "keys", "new")
        words = [word for artifact in artifacts for word in ("--artifact", artifact)]
        began = time.monotonic()
        answer = ran(place, "export", run.path, "-o", target, "--model", model.name, "--force", "--json", *words)
        seconds = time.monotonic() - began
        log.write_text(json.dumps({"seconds": seconds, "answer": json.loads(answer)[0]}, indent=1))
    saved = json.loads(log.read_text())
    bundle = Bundle.open(target, trust=TrustStore(place.folder / "config" / "trusted"))
    return bundle, saved["answer"], saved["seconds"]


@dataclass(frozen=True)
class Subject:
    """The model that is exported, and where."""

    place: Place
    run: Run
    model: RunModel
    workers: int

    @cached_property
    def every(self) -> tuple[Bundle, dict[str, Any], float]:
        """All formats and precisions, forced; see :func:`exported`."""
        return exported(self.place, self.run, self.model, all_artifacts(), "every")

    @cached_property
    def probes(self) -> ProbeSet:
        return ProbeSet.from_bundle(self.every[0])

    @cached_property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.build().parameters())

    @property
    def agreements(self) -> list[dict[str, Any]]:
        """What the export measured: one entry for each artifact and runtime."""
        return self.every[1]["artifacts"]
