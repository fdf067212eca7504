"""All runtimes on one converted model: a runtime that is added to the registry is tried here by itself."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samespace.export.bundle import Exported
from samespace.export.formats.base import artifact_of
from samespace.export.formats.ort import OrtExporter
from samespace.export.graph import DeviceGraph
from samespace.export.run import Run
from samespace.sdk.bundle import Bundle
from samespace.sdk.bundle_writer import artifact_id, write_bundle
from samespace.sdk.errors import ConfigError, RuntimeFailure
from samespace.sdk.metrics import cosine
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes import RUNTIMES, LoadedArtifact, RuntimeOptions, available, open_runtime
from samespace.sdk.runtimes.registry import runtime_class
from samespace.sdk.signing import SigningKey, TrustStore

# The first test waits for the conversions of all families.
pytestmark = [pytest.mark.export, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def bundle(
    exported: dict[str, Exported], run: Run, trust: tuple[SigningKey, TrustStore], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """An artifact of every format that is converted without an environment of its own."""
    path = tmp_path_factory.mktemp("runtimes") / "mixer.samespace"
    known, model = Bundle.open(exported["mixer"].path, trust=trust[1]), run.models["mixer"]
    graph = DeviceGraph(model.build(), model.record.preprocess)
    conversion = OrtExporter().convert(graph, "fp32")
    ort = artifact_of(conversion, OrtExporter, "fp32", artifact_id(conversion.files))
    loaded = [known.artifact(spec.name) for spec in known.artifacts]
    write_bundle(
        path,
        model=model.record,
        space=run.space,
        artifacts=[*((one.spec, one.files) for one in loaded), (ort, conversion.files)],
        files={**ProbeSet.from_bundle(known).to_files(), "evidence.json": known.read("evidence.json")},
        signer=trust[0],
    )
    return Bundle.open(path, trust=trust[1])


@pytest.fixture(scope="module")
def probes(bundle: Bundle) -> ProbeSet:
    return ProbeSet.from_bundle(bundle)


def artifact_for(bundle: Bundle, runtime: str) -> LoadedArtifact:
    return bundle.artifact(runtime_class(runtime).format)


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_reference_is_met_in_any_schedule_of_batches(name: str, bundle: Bundle, probes: ProbeSet) -> None:
    if not available(name):
        known = bundle.artifact("onnx")
        spec = known.spec.model_copy(update={"format": runtime_class(name).format})
        with pytest.raises(ConfigError, match=name):
            open_runtime(replace(known, spec=spec), name)
        return
    artifact = artifact_for(bundle, name)
    schedule = np.random.default_rng(11)
    with open_runtime(artifact, name, RuntimeOptions(batch_size=16)) as runtime:
        for _ in range(6):
            rows = schedule.permutation(len(probes))[: schedule.integers(1, len(probes) + 1)]
            answer = runtime.run(probes.golden[rows])
            assert answer.dtype == np.float32
            assert cosine(answer, probes.reference[rows]).min() >= 0.999
            np.testing.assert_allclose(answer[:1], runtime.run(probes.golden[rows[:1]]), atol=1e-5)
        assert runtime.run(probes.golden[:0]).shape == (0, artifact.dim)


@pytest.mark.parametrize("name", [name for name in RUNTIMES if available(name)])
def test_two_runtimes_of_one_artifact_do_not_disturb_each_other(name: str, bundle: Bundle, probes: ProbeSet) -> None:
    artifact = artifact_for(bundle, name)
    with open_runtime(artifact, name) as one, open_runtime(artifact, name) as other:
        first = one.run(probes.golden[:3])
        kept = first.copy()
        other.run(probes.golden[3:9])
        one.run(probes.golden[9:12])
        # What was handed out is not overwritten by later calls.
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", [name for name in RUNTIMES if available(name)])
def test_wrong_images_are_refused(name: str, bundle: Bundle) -> None:
    with open_runtime(artifact_for(bundle, name), name) as runtime:
        for wrong in (
            np.zeros((1, 32, 32, 3), np.float32),
            np.zeros((1, 24, 32, 3), np.uint8),
            np.zeros((32, 32, 3), np.uint8),
        ):
            with pytest.raises(RuntimeFailure, match="images must be uint8"):
                runtime.run(wrong)


@pytest.mark.parametrize("name", [name for name in RUNTIMES if available(name)])
def test_cut_and_garbled_artifacts_are_refused_without_a_crash(name: str, bundle: Bundle) -> None:
    good = artifact_for(bundle, name)
    for damage in (lambda data: data[: len(data) // 3], lambda data: b"", lambda data: bytes(reversed(data))):
        files = {path: damage(data) for path, data in good.files.items()}
        with pytest.raises(RuntimeFailure, match="artifacts/model"):
            open_runtime(LoadedArtifact(good.spec, files, good.size, good.dim), name)


def test_a_manifest_that_lies_about_the_dimension_is_found_out(bundle: Bundle, probes: ProbeSet) -> None:
    for name in RUNTIMES:
        if available(name):
            good = artifact_for(bundle, name)
            lying = LoadedArtifact(good.spec, good.files, good.size, good.dim + 1)
            with open_runtime(lying, name) as runtime, pytest.raises(RuntimeFailure, match=rf", {good.dim}\), expected"):
                runtime.run(probes.golden[:1])


def test_a_manifest_that_lies_about_the_dtype_is_found_out(bundle: Bundle) -> None:
    for name, dtype in (("onnx", "float32"), ("tflite", "float32"), ("coreml_reference", "uint8")):
        good = artifact_for(bundle, name)
        spec = good.spec.model_copy(update={"input": good.spec.input.model_copy(update={"dtype": dtype})})
        with pytest.raises(RuntimeFailure, match=f"the manifest says {dtype}"):
            open_runtime(LoadedArtifact(spec, good.files, good.size, good.dim), name)


def test_tflite_runtime_serves_where_only_that_exists(
    bundle: Bundle, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    used = []

    class Recorded(Interpreter):
        def __init__(self, **arguments: object) -> None:
            used.append(arguments["num_threads"])
            super().__init__(**arguments)

    package, module = types.ModuleType("tflite_runtime"), types.ModuleType("tflite_runtime.interpreter")
    module.Interpreter = Recorded  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tflite_runtime", package)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", module)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with open_runtime(bundle.artifact("tflite"), "tflite", RuntimeOptions(threads=2)) as runtime:
        assert cosine(runtime.run(probes.golden), probes.reference).min() >= 0.99999
    assert used == [2]


def test_no_runtime_imports_torch(bundle: Bundle, tmp_path: Path) -> None:
    """In a process of its own: every runtime that works here runs one image, then the loaded modules are looked at."""
    jobs = []
    for name in RUNTIMES:
        if available(name):
            artifact = artifact_for(bundle, name)
            files = {}
            for index, (path, data) in enumerate(artifact.files.items()):
                (tmp_path / f"{name}-{index}").write_bytes(data)
                files[path] = str(tmp_path / f"{name}-{index}")
            jobs.append({"name": name, "spec": artifact.spec.model_dump(mode="json"), "files": files, "dim": artifact.dim})
    script = """
import json, pathlib, sys
import numpy as np
from samespace.sdk.manifest import Artifact
from samespace.sdk.runtimes import LoadedArtifact, open_runtime
for job in json.loads(sys.argv[1]):
    files = {path: pathlib.Path(file).read_bytes() for path, file in job["files"].items()}
    artifact = LoadedArtifact(Artifact.model_validate(job["spec"]), files, 32, job["dim"])
    with open_runtime(artifact, job["name"]) as runtime:
        runtime.run(np.zeros((1, 32, 32, 3), np.uint8))
print(sorted({"torch", "coremltools"} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", script, json.dumps(jobs)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
