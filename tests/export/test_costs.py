"""Costs of real artifacts: every format says of one network what a count in torch says, and their sizes are in proportion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samespace.edge.devices.cli import app
from samespace.edge.devices.costs import ArtifactCosts, artifact_costs
from samespace.edge.models.macs import count
from samespace.export import Exported, Run
from samespace.sdk.bundle import Bundle
from samespace.sdk.signing import SigningKey, TrustStore

pytestmark = pytest.mark.export

FAMILIES = ("residual", "inverted", "mixer", "photo")


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def bundle(name: str, exported: dict[str, Exported], trust: tuple[SigningKey, TrustStore]) -> Bundle:
    return Bundle.open(exported[name].path, trust=trust[1])


def costs(bundle: Bundle) -> dict[str, ArtifactCosts]:
    return {spec.name: artifact_costs(bundle, spec.name, repeats=0) for spec in bundle.artifacts}


def test_all_formats_count_what_torch_counts(name: str, bundle: Bundle, run: Run) -> None:
    model = run.models[name]
    expected = count(model.build(), model.record.preprocess.size)
    found = costs(bundle)
    assert {one.format for one in found.values()} == {"onnx", "tflite", "coreml"}
    for artifact, one in found.items():
        assert one.graph is not None, one.left_out
        assert one.graph.macs == expected.macs, artifact
        # Norms are folded into the layers before them; mean and std of the pixels are constants, too.
        assert one.graph.parameters == pytest.approx(expected.params, rel=0.1, abs=200), artifact
        assert one.file_bytes == sum(len(data) for data in bundle.artifact(artifact).files.values())


def test_half_the_bits_are_half_the_traffic(bundle: Bundle) -> None:
    found = costs(bundle)
    fp32, fp16 = found["onnx-fp32"].graph, found["coreml-fp16"].graph
    assert fp32 is not None
    assert fp16 is not None
    assert fp16.bytes_moved == pytest.approx(fp32.bytes_moved / 2, rel=0.25)
    assert fp32.bytes_moved > found["onnx-fp32"].file_bytes * 0.8  # each weight is read at least once


def test_memory_is_measured_where_the_artifact_may_run(
    exported: dict[str, Exported], trust: tuple[SigningKey, TrustStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported["photo"].path
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path))
    stranger = artifact_costs(Bundle.open(path, allow_unsigned=True), "onnx-fp32", repeats=1)
    assert stranger.memory is None
    assert "not trusted" in stranger.left_out[0]
    TrustStore.default().add(trust[0].public, "tests")
    bundle = Bundle.open(path)
    found = artifact_costs(bundle, "onnx-fp32", repeats=1)
    assert found.memory is not None
    # The weights are in it, at least; and it is no more than a small network can need.
    assert found.file_bytes < found.memory < found.file_bytes + (200 << 20)
    assert artifact_costs(bundle, "coreml-fp16", repeats=1).memory is None


def test_what_cannot_be_counted_says_why(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Bundle.artifact

    def cut(self: Bundle, name: str):
        loaded = whole(self, name)
        return replace(loaded, files={path: data[: len(data) // 3] for path, data in loaded.files.items()})

    monkeypatch.setattr(Bundle, "artifact", cut)
    for artifact, one in costs(bundle).items():
        assert one.graph is None, artifact
        assert one.left_out[0].startswith("MACs, parameters, bytes and activations: ")


def test_the_command_prints_a_table_and_no_time(bundle: Bundle) -> None:
    asked = ["costs", str(bundle.path), "--allow-unsigned", "--repeats", "0"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "None of this is a time" in done.output
    assert all(spec.name in done.output for spec in bundle.artifacts)
    told = json.loads(CliRunner().invoke(app, [*asked, "--json", "--artifact", "onnx-fp32"]).stdout)
    assert [one["artifact"] for one in told] == ["onnx-fp32"]
    assert told[0]["graph"]["macs"] == artifact_costs(bundle, "onnx-fp32", repeats=0).graph.macs  # type: ignore[union-attr]
