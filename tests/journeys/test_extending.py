"""The examples of docs/extending.md are complete: write the file, add the line, use the part."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from samespace.cloud.gallery.indexes import registry as indexes
from samespace.cloud.gallery.indexes.base import StoredItem
from samespace.cloud.losses import registry as losses
from samespace.cloud.losses.base import Batch, Need, Partner, Shape
from samespace.edge.models import registry as models
from samespace.export import DeviceGraph
from samespace.export.formats import exporter_class
from samespace.export.formats.base import artifact_of
from samespace.sdk.bundle import artifact_id
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.runtimes import registry as runtimes
from samespace.sdk.runtimes.base import LoadedArtifact

DOCUMENT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def module_name(block: str) -> str:
    """``# sdk/samespace/sdk/runtimes/x.py`` -> ``samespace.sdk.runtimes.x``."""
    return block.splitlines()[0].removeprefix("# ").removesuffix(".py").split("/", 1)[1].replace("/", ".")


@pytest.fixture
def written(tmp_path: Path) -> Iterator[dict[str, ModuleType]]:
    """Every file of the document, imported under the name that it would have in its folder."""
    made = {}
    for language, block in BLOCKS:
        if language == "python" and not block.startswith("# line:"):
            name = module_name(block)
            path = tmp_path / f"{name}.py"
            path.write_text(block)
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            made[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(made[name])
    yield made
    for name in made:
        del sys.modules[name]


def add_lines(written: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Add each documented line to its registry."""
    classes = {name: value for module in written.values() for name, value in vars(module).items()}
    for _, block in BLOCKS:
        if block.startswith("# line:"):
            head, line = block.splitlines()
            module, registry = head.removeprefix("# line:").split()
            entry = eval(f"{{{line}}}", classes)  # the document's own text
            for name, value in entry.items():
                monkeypatch.setitem(getattr(importlib.import_module(module), registry), name, value)


def entry_point(block: str) -> EntryPoint:
    (group,) = tomllib.loads(block)["project"]["entry-points"].items()
    (line,) = group[1].items()
    return EntryPoint(name=line[0], value=line[1], group=group[0])


def test_the_loss(written: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    add_lines(written, monkeypatch)
    loss = losses.build_loss("angle", Shape(classes=3, dim=2))
    angles = torch.tensor([0.1, 0.7, 2.0])
    rows = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    target = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    value = loss(Batch(rows, torch.tensor([0, 1, 2])), Partner({Need.EMBEDDING: target}))
    assert value.item() == pytest.approx(angles.mean().item(), abs=1e-4)
    value.backward()
    assert rows.grad is not None
    assert rows.grad.abs().sum() > 0


def test_the_edge_architecture_and_the_runtime(written: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    add_lines(written, monkeypatch)
    point = next(entry_point(block) for language, block in BLOCKS if language == "toml")
    monkeypatch.setattr(models, "families", lambda: {point.name: point})
    torch.manual_seed(0)
    graph = DeviceGraph(models.build_model("plain", {"dim": 8, "image_size": 16}), Preprocess(size=16))
    exporter = exporter_class("onnx")
    conversion = exporter().convert(graph, "fp32")
    spec = artifact_of(conversion, exporter, "fp32", artifact_id(conversion.files))
    artifact = LoadedArtifact(spec, conversion.files, size=16, dim=8)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    with runtimes.open_runtime(artifact, "onnx_python") as ours, runtimes.open_runtime(artifact, "onnx") as theirs:
        np.testing.assert_allclose(ours.run(images), theirs.run(images), atol=1e-5)


def test_the_vector_index(written: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_lines(written, monkeypatch)
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[20:30] = rows[:10]  # ties
    path = str(tmp_path / "vectors.db")
    answers: list[Any] = []
    for name in ("memory", "sqlite"):
        index = indexes.open_index(name, path)
        index.prepare("m", 4)
        index.upsert("m", [StoredItem(f"{i:02}", row, {"row": i}) for i, row in enumerate(rows[:40])])
        index.delete("m", ["03", "21", "nope"])
        index.upsert("m", [StoredItem(f"{i:02}", rows[i], {"row": -i}) for i in range(5)])
        answers.append((index.search("m", rows[40:], 7, exact=True), index.count("m"), index.known("m", ["03", "21"])))
        index.close()
    assert answers[0] == answers[1]
    assert indexes.open_index("sqlite", path).count("m") == answers[1][1]


def test_every_block_parses() -> None:
    for language, block in BLOCKS:
        if language == "python" and not block.startswith("# line:"):
            ast.parse(block)
