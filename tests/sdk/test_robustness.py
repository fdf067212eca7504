"""Damaged artifacts and pictures that are bombs: the process lives on and says what is wrong.

``benchmarks/export`` does the same with 500 mutants of every format.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from samespace.sdk.isolation import Limits
from samespace.sdk.runtimes.base import LoadedArtifact

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX")

FOLDER = Path(__file__).parents[2] / "benchmarks" / "export"
COUNT = 12


@pytest.fixture(scope="module")
def damage() -> Iterator[ModuleType]:
    yield from module_of_benchmark("mutants")


@pytest.fixture(scope="module")
def bomb() -> Iterator[ModuleType]:
    yield from module_of_benchmark("bomb")


def module_of_benchmark(name: str) -> Iterator[ModuleType]:
    """A module of a folder that is no package."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module(name)
    sys.path.remove(str(FOLDER))
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def artifacts(toy: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedArtifact]:
    """The toy in both of onnxruntime's formats."""
    import onnxruntime

    spec, files = toy.artifact(toy.graph(toy.edge))
    path = tmp_path_factory.mktemp("ort") / "toy.ort"
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(path)
    settings.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(files[""], settings, providers=["CPUExecutionProvider"])
    flat = spec.model_copy(update={"format": "ort", "path": "artifacts/model.fp32.ort"})
    return {
        "onnx": LoadedArtifact(spec, files, toy.size, toy.dim),
        "ort": LoadedArtifact(flat, {"": path.read_bytes()}, toy.size, toy.dim),
    }


@pytest.fixture(scope="module")
def images(toy: Any) -> np.ndarray:
    return toy.preprocess.batch(toy.images[:2])


@pytest.mark.parametrize("name", ["onnx", "ort"])
def test_whatever_a_mutant_does_the_parent_reports_it(
    name: str, damage: ModuleType, artifacts: dict[str, LoadedArtifact], images: np.ndarray
) -> None:
    artifact = artifacts[name]
    assert damage.outcome(artifact, name, images) == ("embedding", "")

    def one(mutant: tuple[str, dict[str, bytes]]) -> tuple[str, str]:
        return damage.outcome(replace(artifact, files=mutant[1]), name, images)

    with ThreadPoolExecutor(max_workers=2) as pool:
        outcomes = list(pool.map(one, damage.mutants(artifact.files, COUNT, seed=0)))
    assert {kind for kind, _ in outcomes} <= set(damage.OURS)
    # A file that is cut off never answers as if nothing were wrong, and what is refused is named.
    cut = [outcomes[index] for index in range(COUNT) if damage.DAMAGES[index % len(damage.DAMAGES)] == "cut"]
    assert all(kind != "embedding" for kind, _ in cut)
    assert all(artifact.spec.path in message for kind, message in outcomes if kind in ("refused", "child crashed"))


def test_a_child_that_dies_or_hangs_is_told_from_a_refusal(
    damage: ModuleType, artifacts: dict[str, LoadedArtifact], images: np.ndarray
) -> None:
    artifact = artifacts["onnx"]
    # No CPU time to load anything; no time to start.
    kinds = [
        damage.outcome(artifact, "onnx", images, limits)[0] for limits in (Limits(cpu_seconds=0), Limits(open_seconds=0.001))
    ]
    assert kinds == ["child crashed", "child silent"]
    assert damage.outcome(replace(artifact, files={"": b"no model"}), "onnx", images)[0] == "refused"


def test_mutants_are_damaged_each_in_its_way_and_the_same_again(damage: ModuleType) -> None:
    files = {"a": bytes(range(256)) * 40, "b": b"x" * 1000}
    made = list(damage.mutants(files, 60, seed=3))
    assert made == list(damage.mutants(files, 60, seed=3))
    assert made != list(damage.mutants(files, 60, seed=4))
    assert {name for name, _ in made} == set(damage.DAMAGES)
    assert all(set(mutant) == set(files) for _, mutant in made)
    assert all(sum(mutant[path] != files[path] for path in files) <= 1 for _, mutant in made)
    # Zeros over zeros and the like: few mutants may be what they were.
    assert sum(mutant == files for _, mutant in made) < 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_bomb_is_refused_before_it_is_decoded(bomb: ModuleType) -> None:
    picture = bomb.png(7100, 7100)
    assert len(picture) < 100_000
    refused, grown = bomb.memory_of(picture)
    assert refused == "<bytes>: 7100x7100 is more than 50000000 pixels; scale it down first"
    assert grown < 8 << 20
    # What decoding it costs: the measurement would show it.
    accepted, grown = bomb.memory_of(picture, max_pixels=60_000_000)
    assert (accepted, grown > 100 << 20) == ("", True)
