"""The benchmarks of exported artifacts: what they say of what they measured."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from samespace.cloud.recipe import load_recipe
from samespace.edge.models.registry import build_model
from samespace.sdk.evidence import EvidenceRecord, measured_text
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.runtimes import registry
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime

ROOT = Path(__file__).parents[2] / "benchmarks"
NAMES = tuple(path.stem for path in (ROOT / "export").glob("*.py"))


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """``bench("claims")``: a module of a folder that is no package."""
    sys.path.insert(0, str(ROOT / "export"))
    yield importlib.import_module
    sys.path.remove(str(ROOT / "export"))
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def runtimes(bench: Any) -> ModuleType:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("runtimes_benchmark", ROOT / "runtimes" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def row(artifact: str, runtime: str, **more: Any) -> dict[str, Any]:
    return {
        "artifact": artifact,
        "runtime": runtime,
        "precision": artifact.partition("-")[2],
        "bytes": 8_000_000 if artifact.endswith("fp32") else 2_000_000,
        "limit": 0.98,
        "refused": "",
        "n": 64,
        "worst_cosine": 0.999,
        "min_cosine": 0.99,
        "overlap": 0.9,
        "recall_difference": {"value": -0.01, "low": -0.03, "high": 0.01, "n": 64},
        "other_runtimes": None,
        "latency": {"milliseconds": 1.0, "ratio": 0.5, "low": 0.45, "high": 0.55},
    } | more


def test_the_table_of_all_runtimes_says_what_was_measured(runtimes: ModuleType) -> None:
    rows = [
        row("onnx-fp32", "onnx", latency={"milliseconds": 2.0, "ratio": 1.0, "low": 1.0, "high": 1.0}),
        row("onnx-int8", "onnx", worst_cosine=0.9),
        row("coreml-fp32", "coreml_reference", latency=None, recall_difference=None),
        row("tflite-int8", "tflite_runtime", refused="x: the interpreter refuses it"),
    ]
    lines = runtimes.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| onnx-fp32 | onnx | 8.00 (1.0 x) | 0.999000 | 90.0 % | -1.0 [-3.0, +1.0] | 1.00 ")
    assert "| 2.00 (4.0 x) | 0.900000 **below 0.98** |" in lines[3]
    assert "| - | not timed |" in lines[4]
    assert "refused: x: the interpreter refuses it" in lines[5]


def test_the_gates_hold_for_all_but_palettes_of_four_bits(runtimes: ModuleType) -> None:
    good = [row("onnx-fp32", "onnx"), row("coreml-palette4", "coreml_reference", worst_cosine=0.5)]
    assert [record.holds for record in runtimes.records(good, "small")] == [True]
    for bad in (row("onnx-int8", "onnx", worst_cosine=0.97), row("onnx-int8", "onnx", refused="no")):
        record = runtimes.records([*good, bad], "small")[0]
        assert not record.holds
        assert record.reason == "onnx-int8 in onnx"
    assert not runtimes.records([], "small")[0].holds
    crossed = runtimes.records([row("tflite-int8", "tflite", other_runtimes=0.97)], "full")
    assert crossed[1].measured == {"tflite-int8": 0.97}


class Given:
    """A subject whose export and probes are made up."""

    parameters = 2_100_000
    agreements: ClassVar[list[dict[str, Any]]] = []


def entry(artifact: str, runtime: str = "onnx (1.0)", **more: Any) -> dict[str, Any]:
    return {
        "artifact": artifact,
        "runtime": runtime,
        "n": 64,
        "worst_cosine": 0.999999,
        "bytes": 8000 if artifact.endswith("fp32") else 2000,
        "overlap": 0.9,
        "recall": {"difference": 0.0, "low": -0.01, "high": 0.01, "n": 60},
    } | more


def held(found: list[dict[str, Any]]) -> dict[str, bool]:
    common = {"seeds": (0,), "device": "", "command": "", "commit": ""}
    made = [EvidenceRecord(**record, **common) for record in found]
    assert all(measured_text(record) for record in made)
    return {record.id: record.holds for record in made}


def test_the_bars_of_the_export(bench: Any) -> None:
    claims, subject = bench("claims"), Given()
    subject.agreements = [  # type: ignore[misc]
        entry("onnx-fp32"),
        entry("onnx-int8"),
        entry("tflite-int8", "tflite_runtime (2.14)", worst_cosine=0.97),
        entry("coreml-palette4", worst_cosine=0.5),
    ]
    assert held(claims.cosine(subject)) == {"cosine-fp32": True, "cosine-int8": False, "cosine-palette4": True}
    assert claims.cosine(subject)[1]["reason"] == "below: tflite-int8 in tflite_runtime"
    assert held(claims.recall(subject)) == {"recall-int8": True, "recall-overlap": True}
    assert held(claims.size(subject)) == {"size-int8": True}
    subject.agreements[1] = entry("onnx-int8", bytes=2600, recall={"difference": -0.02, "low": -0.04, "high": 0.0, "n": 60})
    assert held([*claims.recall(subject), *claims.size(subject)]) == {
        "recall-int8": False,
        "recall-overlap": True,
        "size-int8": False,
    }
    subject.parameters = 1_900_000  # type: ignore[misc]
    subject.agreements[1] = entry("onnx-int8", bytes=2000)
    assert held(claims.size(subject)) == {"size-int8": False}


def test_every_part_says_what_it_measures_and_owns_its_records(bench: Any) -> None:
    claims, run = bench("claims"), bench("run")
    assert all(part.__doc__ for part in claims.PARTS.values())
    common = {"claim": "", "bar": "", "measured": 1.0, "ci95": None, "n": 1, "seeds": (0,), "holds": True}
    for name in claims.PARTS:
        record = EvidenceRecord(id=f"{name}-something", device="", command="", commit="", **common)
        assert run._part(record) == name


class Sleepy(Runtime):
    """Takes as many milliseconds as its artifact says."""

    name, format = "sleepy", "onnx"

    def _infer(self, images: np.ndarray) -> np.ndarray:
        until = time.perf_counter() + int(self.artifact.single_file) / 1000
        while time.perf_counter() < until:
            pass
        return np.ones((len(images), self.artifact.dim), np.float32)


def test_ratios_of_times_are_to_the_base(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "runtime_class", lambda name: Sleepy)
    spec = Artifact(
        path="model.onnx",
        format="onnx",
        precision="fp32",
        artifact_id="0" * 64,
        input=TensorSpec(name="image", dtype="uint8", dynamic_batch=True),
        output="embedding",
        recipe={},
        min_runtime="",
    )
    artifacts = {(name, "sleepy"): LoadedArtifact(spec, {"": text}, 8, 4) for name, text in (("slow", b"9"), ("fast", b"3"))}
    images = np.zeros((2, 8, 8, 3), np.uint8)
    found = bench("latency").interleaved(artifacts, images, ("slow", "sleepy"), rounds=9)
    slow, fast = found["slow", "sleepy"], found["fast", "sleepy"]
    assert (slow.ratio, slow.low, slow.high) == (1.0, 1.0, 1.0)
    assert fast.low <= fast.ratio <= fast.high
    # On a machine that does other things, too, both are stretched alike.
    assert fast.ratio < 0.8


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_recipe_trains_a_model_that_the_bar_is_about(size: str) -> None:
    path = ROOT / "export" / "recipe.toml"
    recipe = load_recipe(path, size)
    phone = recipe.models["phone"]
    network = build_model(phone.family, phone.builder_arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) >= 2_000_000
    assert tomllib.loads(path.read_text())["name"] == "export-benchmark"
