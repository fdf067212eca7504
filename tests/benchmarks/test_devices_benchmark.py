"""The benchmark of devices: what it says of what it measured."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from samespace.sdk.check.matrix import Cell, HostDifference, Matrix
from samespace.sdk.evidence import EvidenceRecord

FILE = Path(__file__).parents[2] / "benchmarks" / "devices" / "figures.py"


@pytest.fixture(scope="module")
def figures() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("devices_figures", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def cell(device: str, artifact: str = "onnx-fp32", apart: float = 0.0, **more: Any) -> Cell:
    host = HostDifference(runtime="onnx", largest=apart, probe=3, bar=1e-6, device_error=apart, host_error=1e-9)
    fields: dict[str, Any] = {"state": "measured", "outcome": "pass", "n": 64, "embeddings_sha256": "a" * 64, "host": host}
    return Cell(device=device, artifact=artifact, runtime="onnx", **(fields | more))


def matrix(*cells: Cell) -> Matrix:
    devices = tuple(dict.fromkeys(one.device for one in cells))
    return Matrix(bundle="b", model="m", model_id="m-1", devices=devices, artifacts=("onnx-fp32",), cells=cells)


def told(
    figures: ModuleType, first: Matrix, second: Matrix | None = None, seconds: float = 100, **more: Any
) -> dict[str, EvidenceRecord]:
    options = {"systems": None, "faulty": "a53", "faults": (), "install": None, "size": "ci"} | more
    found = figures.records(first, first if second is None else second, (seconds, seconds), **options)
    return {record.id: record for record in found}


def six() -> list[Cell]:
    return [cell(f"d{index}") for index in range(6)]


def test_what_is_well_holds(figures: ModuleType) -> None:
    found = told(figures, matrix(*six()))
    assert set(found) == {"devices-matrix-time", "devices-repeated", "devices-gates", "devices-host-1e-06"}
    assert all(record.holds for record in found.values())


def test_each_bar_can_be_missed_and_says_why(figures: ModuleType) -> None:
    def time(*cells: Cell, seconds: float = 100) -> str:
        return told(figures, matrix(*cells), seconds=seconds)["devices-matrix-time"].reason

    assert time(*six()[:5]) == "5 devices"
    assert time(*six(), cell("d7", n=20)) == "20 images"
    assert time(*six(), seconds=901) == "901 s"
    assert time(*six(), cell("d7", state="failed", outcome=None, why="it is not installed")) == "d7: it is not installed"
    other = told(figures, matrix(*six()), matrix(*six()[:5], cell("d5", embeddings_sha256="b" * 64)))["devices-repeated"]
    assert (other.holds, other.reason) == (False, "onnx-fp32 in onnx on d5")
    failed = told(figures, matrix(*six(), cell("d7", outcome="fail", diagnosis=("int8_saturation",))))["devices-gates"]
    assert (failed.holds, failed.reason) == (False, "onnx-fp32 in onnx on d7: int8_saturation")
    apart = told(figures, matrix(*six(), cell("d7", apart=1e-4)))["devices-host-1e-06"]
    assert not apart.holds
    assert "onnx-fp32 in onnx on d7: 1.0e-04 (above 1e-06; the device left the reference" in apart.reason
    assert apart.measured == {"largest": 1e-4, "where": "onnx-fp32 in onnx on d7", "above": 1, "of": 7}


def test_a_whole_system_is_compared_with_its_own_processor(figures: ModuleType) -> None:
    users = matrix(cell("a53"), cell("a76", embeddings_sha256="c" * 64))
    same = told(figures, users, systems=matrix(cell("a53-256mb"), cell("a76-256mb", embeddings_sha256="c" * 64)))
    assert same["devices-system-user"].measured == {"equal": 2, "different": 0, "not run": 0}
    assert same["devices-system-user"].holds
    other = told(figures, users, systems=matrix(cell("a53-256mb", embeddings_sha256="d" * 64)))["devices-system-user"]
    assert (other.holds, other.reason) == (False, "onnx-fp32 in onnx on a53-256mb")
    refused = told(figures, users, systems=matrix(cell("a53-256mb", embeddings_sha256="", why="out of memory")))
    assert refused["devices-system-user"].reason == "no artifact ran on both"


def test_faults_and_the_install_are_told(figures: ModuleType) -> None:
    rows = [{"artifact": "onnx-fp32", "fault": name, "named": [name], "found": True} for name in ("bgr", "exif_ignored")]
    wrong = {"artifact": "onnx-fp32", "fault": "squashed", "named": ["unknown"], "found": False}
    assert told(figures, matrix(*six()), faults=rows)["devices-faults"].holds
    assert told(figures, matrix(*six()), faults=[*rows, wrong])["devices-faults"].reason == "squashed in onnx-fp32: unknown"
    for seconds, failed, reason in ((100, "", ""), (241, "", "it takes longer"), (9, "no space left", "no space left")):
        record = told(figures, matrix(*six()), install=figures.Install(seconds, 60, failed))["devices-install"]
        assert (record.holds, record.reason) == (not reason, reason)
