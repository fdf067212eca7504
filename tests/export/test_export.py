"""Every model family to every format: what is exported embeds as the torch model does, and what does not is not written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samespace.export import DeviceGraph, Exported, Run, TorchRuntime, export_run, verify
from samespace.export.conversion import Job, convert
from samespace.export.formats import EXPORTERS, exporter_class
from samespace.export.formats.base import artifact_of
from samespace.export.formats.onnx import OnnxExporter
from samespace.export.targets import parse_artifacts
from samespace.sdk.bundle import Bundle, artifact_id
from samespace.sdk.errors import ConfigError, ExportError
from samespace.sdk.metrics import cosine
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes import LoadedArtifact, RuntimeOptions, open_runtime, runtimes_for
from samespace.sdk.signing import SigningKey, TrustStore

# The first test waits for the conversions of all families.
pytestmark = [pytest.mark.export, pytest.mark.timeout(900)]

NAMES = ("cloud", "residual", "inverted", "mixer", "photo")
ARTIFACTS = {"onnx-fp32": 0.99999, "tflite-fp32": 0.99999, "coreml-fp16": 0.999}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("artifact", ARTIFACTS)
def test_every_runtime_embeds_as_the_torch_model_does(
    name: str, artifact: str, exported: dict[str, Exported], run: Run, trust: tuple[SigningKey, TrustStore]
) -> None:
    bundle = Bundle.open(exported[name].path, trust=trust[1])
    loaded = bundle.artifact(artifact)
    tensors = ProbeSet.from_bundle(bundle).golden
    reference = TorchRuntime(run.models[name].build(), run.models[name].record).run(tensors)
    names = runtimes_for(loaded.spec.format)
    assert names
    for runtime_name in names:
        with open_runtime(loaded, runtime_name) as runtime:
            rows = runtime.run(tensors)
        assert cosine(rows, reference).min() >= ARTIFACTS[artifact]
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5 if "fp32" in artifact else 2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("artifact", ["onnx-fp32", "tflite-fp32"])
def test_a_batch_of_any_size_gives_what_single_images_give(
    name: str, artifact: str, exported: dict[str, Exported], trust: tuple[SigningKey, TrustStore]
) -> None:
    bundle = Bundle.open(exported[name].path, trust=trust[1])
    loaded, tensors = bundle.artifact(artifact), ProbeSet.from_bundle(bundle).golden[:40]
    assert loaded.spec.input.dynamic_batch
    assert loaded.spec.input.dtype == "uint8"
    with open_runtime(loaded, options=RuntimeOptions(batch_size=1)) as alone, open_runtime(loaded) as batched:
        expected = alone.run(tensors)
        for size in (40, 32, 7, 1, 40):
            np.testing.assert_allclose(batched.run(tensors[:size]), expected[:size], atol=1e-5)


def test_the_formats_agree_with_each_other(exported: dict[str, Exported], trust: tuple[SigningKey, TrustStore]) -> None:
    bundle = Bundle.open(exported["mixer"].path, trust=trust[1])
    tensors = ProbeSet.from_bundle(bundle).golden
    rows = []
    for artifact in bundle.artifacts:
        for name in runtimes_for(artifact.format):
            with open_runtime(bundle.artifact(artifact.name), name) as runtime:
                rows.append(runtime.run(tensors))
    assert len(rows) >= 3
    for other in rows[1:]:
        assert cosine(rows[0], other).min() >= 0.999


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_holds_what_the_check_needs(
    name: str, exported: dict[str, Exported], run: Run, trust: tuple[SigningKey, TrustStore]
) -> None:
    bundle = Bundle.open(exported[name].path, trust=trust[1])
    record = run.models[name].record
    assert bundle.trusted
    assert bundle.manifest.model_id == record.model_id
    assert bundle.manifest.space_id == run.space.space_id
    probes = ProbeSet.from_bundle(bundle)
    assert len(probes) == 64
    np.testing.assert_array_equal(probes.golden, record.preprocess.batch(run.probe_images))
    cloud = TorchRuntime(run.cloud.build(), run.cloud.record)
    np.testing.assert_allclose(probes.cloud, cloud.run(run.cloud.record.preprocess.batch(run.probe_images)), atol=1e-5)
    assert probes.probe_labels == run.probe_labels
    assert probes.gallery_labels == run.gallery_labels
    evidence = json.loads(bundle.read("evidence.json"))
    assert evidence[0] == run.matrices[0]
    assert {entry["artifact"] for entry in evidence[1:]} == set(ARTIFACTS)
    for entry in evidence[1:]:
        assert entry["failed"] == ""
        assert entry["overlap"] >= 0.95
        assert entry["recall"]["low"] <= entry["recall"]["difference"] <= entry["recall"]["high"]
    assert bundle.manifest.gates == {"fp32": {"worst_cosine": 0.99999}, "fp16": {"worst_cosine": 0.999}}


def test_known_mistakes_are_embedded_and_differ(exported: dict[str, Exported], trust: tuple[SigningKey, TrustStore]) -> None:
    probes = ProbeSet.from_bundle(Bundle.open(exported["cloud"].path, trust=trust[1]))
    assert probes.mistakes.keys() >= {"bgr", "no_antialias", "range_01", "no_mean_std", "no_l2"}
    assert cosine(probes.mistakes["bgr"], probes.reference).min() < 0.99999
    # The direction is right where only the norm is forgotten.
    raw = probes.mistakes["no_l2"]
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.01
    assert cosine(raw / np.linalg.norm(raw, axis=1, keepdims=True), probes.reference).min() > 0.99999


def test_artifacts_say_nothing_of_the_machine(exported: dict[str, Exported], trust: tuple[SigningKey, TrustStore]) -> None:
    for item in exported.values():
        bundle = Bundle.open(item.path, trust=trust[1])
        for data in bundle.files_below("artifacts").values():
            for path in (str(Path(__file__).parents[2]), str(Path(torch.__file__).parent), "site-packages"):
                assert path.encode() not in data


def test_equal_models_give_equal_artifact_ids(exported: dict[str, Exported], run: Run) -> None:
    graph = DeviceGraph(run.models["mixer"].build(), run.models["mixer"].record.preprocess)
    there = {artifact.name: artifact.artifact_id for artifact in exported["mixer"].manifest.artifacts}
    for name, format in (("onnx-fp32", "onnx"), ("coreml-fp16", "coreml")):
        exporter = exporter_class(format)
        again = exporter().convert(graph, exporter.precisions[0])
        assert artifact_id(again.files) == there[name]


SABOTAGE = '''
"""Exporters that go wrong, each in its own way."""
import os, sys, threading
from samespace.export.formats.base import Conversion
from samespace.export.formats.onnx import OnnxExporter
from samespace.sdk.manifest import TensorSpec
from samespace.export.graph import DeviceGraph

class BgrGraph(DeviceGraph):
    def forward(self, image):
        return super().forward(image.flip(3))

class Bgr(OnnxExporter):
    def convert(self, graph, precision, options):
        return super().convert(BgrGraph(graph.model, graph.preprocess), precision)

class Raises(OnnxExporter):
    def convert(self, graph, precision, options):
        print("chatter of the converter")
        raise KeyError("operator nobody knows")

class Quick(OnnxExporter):
    def convert(self, graph, precision, options):
        return Conversion({"": b"x"}, TensorSpec(name="x", dtype="uint8", dynamic_batch=True), "y")

class Blocks(OnnxExporter):
    def convert(self, graph, precision, options):
        threading.Event().wait()

class Crashes(OnnxExporter):
    def convert(self, graph, precision, options):
        print("last words", flush=True)
        os._exit(7)
'''


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put one of the exporters of :data:`SABOTAGE` in the place of a real one."""
    (tmp_path / "sabotaged_exporters.py").write_text(SABOTAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, format="onnx": monkeypatch.setitem(EXPORTERS, format, f"sabotaged_exporters:{name}")


def test_a_conversion_that_exchanges_channels_is_refused_and_nothing_is_written(
    sabotage: Any, run: Run, tmp_path: Path
) -> None:
    sabotage("Bgr")
    out = tmp_path / "out"
    with pytest.raises(ExportError) as caught:
        export_run(run, run.choose(("mixer",)), [out / "mixer.samespace"], None, artifacts=(("onnx", "fp32"),))
    message = str(caught.value)
    for part in ("mixer onnx-fp32", "worst-1 % cosine", "0.99999", "n=64", "probe image", "Nothing was written"):
        assert part in message
    assert not out.exists()


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ("Raises", ("KeyError", "operator nobody knows", "chatter of the converter", "mixer to onnx-fp32")),
        ("Crashes", ("exit code 7", "last words", "mixer to onnx-fp32")),
    ],
)
def test_a_failing_converter_is_one_error_with_what_it_said(
    how: str, parts: tuple[str, ...], sabotage: Any, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sabotage(how)
    with pytest.raises(ExportError) as caught:
        export_run(run, run.choose(("mixer",)), [tmp_path / "mixer.samespace"], None, artifacts=(("onnx", "fp32"),))
    for part in parts:
        assert part in str(caught.value)
    assert not (tmp_path / "mixer.samespace").exists()
    assert "chatter" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("how", ["Quick", "Raises"])
def test_neither_ctrl_c_nor_a_failure_waits_for_the_other_converters(how: str, sabotage: Any, run: Run) -> None:
    """One converter never ends; it is killed as soon as something stops the export beside it."""
    sabotage(how)
    sabotage("Blocks", "tflite")
    jobs = [Job(run.models["mixer"], "tflite", "fp32"), Job(run.models["mixer"], "onnx", "fp32")]

    def interrupted(job: Job) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt if how == "Quick" else ExportError):
        convert(jobs, 2, interrupted)


class _NoNorm(DeviceGraph):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norm = torch.nn.Identity()  # type: ignore[assignment]


class _MixesTheBatch(DeviceGraph):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = super().forward(image)
        return torch.nn.functional.normalize(x + 0.003 * x.mean(0, keepdim=True), dim=1)


class _NotANumber(DeviceGraph):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) * torch.log(-image.float().amax((1, 2, 3)))[:, None]


@pytest.mark.parametrize(
    ("graph_class", "said"),
    [
        (_NoNorm, "L2 norm is missing"),
        (_MixesTheBatch, "in a batch gets another embedding than alone"),
        (_NotANumber, "has norm nan"),
    ],
)
def test_graphs_that_a_cosine_alone_would_pass_are_refused(graph_class: type[DeviceGraph], said: str, run: Run) -> None:
    model = run.models["mixer"]
    record = model.record
    tensors = record.preprocess.batch(run.probe_images)
    reference = TorchRuntime(model.build(), record).run(tensors)
    conversion = OnnxExporter().convert(graph_class(model.build(), record.preprocess), "fp32")
    entry = artifact_of(conversion, OnnxExporter, "fp32", artifact_id(conversion.files))
    with pytest.raises(ExportError, match=said):
        verify(LoadedArtifact(entry, conversion.files, record.preprocess.size, record.dim), tensors, reference, "mixer")


def test_an_artifact_that_does_not_run_is_refused(
    exported: dict[str, Exported], run: Run, trust: tuple[SigningKey, TrustStore]
) -> None:
    bundle = Bundle.open(exported["mixer"].path, trust=trust[1])
    probes = ProbeSet.from_bundle(bundle)
    for artifact in bundle.artifacts:
        loaded = bundle.artifact(artifact.name)
        broken = LoadedArtifact(
            loaded.spec, {name: data[: len(data) // 2] for name, data in loaded.files.items()}, loaded.size, loaded.dim
        )
        with pytest.raises(ExportError, match="does not run"):
            verify(broken, probes.golden, probes.reference)


def test_artifacts_are_chosen_by_name() -> None:
    assert parse_artifacts([]) == (("onnx", "fp32"), ("tflite", "fp32"), ("coreml", "fp16"))
    assert parse_artifacts(["coreml-fp32", "onnx", "onnx-fp32"]) == (("coreml", "fp32"), ("onnx", "fp32"))
    with pytest.raises(ConfigError, match="tflite is not exported as 'int3'; there is: tflite-fp32"):
        parse_artifacts(["tflite-int3"])
    with pytest.raises(ConfigError, match=r"'pt'; there are: onnx, .*coreml"):
        parse_artifacts(["pt"])
