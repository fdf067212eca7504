"""Devices that are another process: the worker really runs here, by this machine's own Python in the place of an emulator."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samespace.edge.devices.host import HostDevice
from samespace.edge.devices.profile import DeviceProfile, QemuUser
from samespace.edge.devices.served import ServedDevice
from samespace.sdk import Bundle, ProbeSet, RuntimeOptions, TrustStore
from samespace.sdk.errors import ConfigError
from samespace.sdk.signing import PublicKey

CORPUS = Path(__file__).parents[2] / "corpus" / "bundle-v2"
WORKER = Path(sys.modules[ServedDevice.__module__].__file__ or "").with_name("worker.py")
OPTIONS = RuntimeOptions(threads=1)
PROFILE = DeviceProfile(
    name="here",
    description="this machine, by way of the worker",
    runs=QemuUser(kind="qemu-user", architecture="arm64", cpu="max", runtimes=("onnx", "ort", "tflite", "tflite_runtime")),
    proves="",
    cannot_prove="",
)


class Here(ServedDevice):
    """Starts the worker without an emulator."""

    start_seconds = 60.0
    broken: str | None = None
    script: str | None = None

    def command(self) -> list[str]:
        return [sys.executable, "-P", *(["-c", self.script] if self.script else [str(WORKER)])]

    def damage(self) -> str | None:
        return self.broken


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    trust = TrustStore(tmp_path / "trust")
    trust.add(PublicKey.load(CORPUS / "signer.pub.pem"), "corpus")
    return Bundle.open(next(CORPUS.glob("*.samespace")), trust=trust)


@pytest.fixture
def device() -> Iterator[Here]:
    device = Here(PROFILE)
    yield device
    device.close()


@pytest.fixture
def scripted() -> Iterator[Callable[[str], Here]]:
    """``scripted(text)``: a device whose worker says hello, then runs ``text`` when it is asked to embed."""
    made: list[Here] = []

    def make(text: str) -> Here:
        device = Here(PROFILE)
        device.script = (
            "from samespace.sdk.runtimes.child_frames import serve\n"
            "def answer(question, parts):\n"
            "    if question['do'] == 'hello':\n"
            "        return {'host': {}, 'versions': {'onnx': 'onnxruntime 9'}}, []\n"
            f"    {text}\n"
            "serve(answer)\n"
        )
        made.append(device)
        return device

    yield make
    for device in made:
        device.close()


def test_one_process_serves_all_artifacts_as_this_machine_does(bundle: Bundle, device: Here) -> None:
    probes = ProbeSet.from_bundle(bundle)
    children = set()
    for artifact, runtime in [("onnx-int8", "onnx"), ("ort-fp32", "ort"), ("tflite-int8-dynamic", "tflite")]:
        there = device.embed(bundle, artifact, runtime, probes.images, OPTIONS)
        here = HostDevice().embed(bundle, artifact, runtime, probes.images, OPTIONS)
        assert there.refused == ""
        np.testing.assert_array_equal(there.tensors, probes.golden)
        np.testing.assert_array_equal(there.embeddings, here.embeddings)
        assert there.runtime_version == here.runtime_version
        assert there.host["machine"] == here.host["machine"]
        children.add(device._child)
    assert len(children) == 1


def test_the_old_interpreter_runs_in_the_workers_own_process(bundle: Bundle, device: Here) -> None:
    probes = ProbeSet.from_bundle(bundle)
    run = device.embed(bundle, "tflite-int8-dynamic", "tflite_runtime", probes.images[:4], OPTIONS)
    assert run.runtime_version.startswith("tflite-runtime 2.14")
    assert run.embeddings is not None
    here = HostDevice().embed(bundle, "tflite-int8-dynamic", "tflite_runtime", probes.images[:4], OPTIONS)
    np.testing.assert_array_equal(run.embeddings, here.embeddings)


def test_a_runtime_or_artifact_that_is_not_there_is_a_mistake_of_the_caller(bundle: Bundle, device: Here) -> None:
    with pytest.raises(ConfigError, match=r"device 'here' has no runtime 'tflite' for .*it has: onnx"):
        device.embed(bundle, "onnx-int8", "tflite", [], OPTIONS)
    with pytest.raises(ConfigError, match="is no artifact"):
        device.embed(bundle, "onnx-int9", "onnx", [], OPTIONS)
    assert device.runtimes("coreml") == ()


def test_what_cannot_be_decoded_is_refused(bundle: Bundle, device: Here) -> None:
    run = device.embed(bundle, "onnx-int8", "onnx", [b"no picture"], OPTIONS)
    assert run.embeddings is None
    assert "<bytes>" in run.refused


def test_a_crash_is_a_refusal_and_the_next_artifact_gets_a_new_process(bundle: Bundle, device: Here) -> None:
    import os
    import signal

    images = ProbeSet.from_bundle(bundle).images[:2]
    assert device.embed(bundle, "onnx-int8", "onnx", images, OPTIONS).refused == ""
    assert device._child is not None
    os.kill(device._child._child._process.pid, signal.SIGSEGV)
    run = device.embed(bundle, "onnx-int8", "onnx", images, OPTIONS)
    assert run.embeddings is None
    assert "SIGSEGV" in run.refused
    assert "the runtime crashed" in run.refused
    assert device.embed(bundle, "onnx-int8", "onnx", images, OPTIONS).refused == ""


@pytest.mark.parametrize(
    ("name", "meaning"), [("SIGILL", "processor has not an instruction"), ("SIGKILL", "memory"), ("SIGABRT", "gave up")]
)
def test_how_it_ended_says_what_that_means(name: str, meaning: str, bundle: Bundle, scripted: Callable[[str], Here]) -> None:
    run = scripted(f"import os, signal; os.kill(os.getpid(), signal.{name})").embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    assert name in run.refused
    assert meaning in run.refused
    assert run.runtime_version == "onnxruntime 9"


def test_a_device_that_goes_silent_is_ended(bundle: Bundle, scripted: Callable[[str], Here]) -> None:
    device = scripted("import threading; threading.Event().wait()")
    device.embed_seconds = device.image_seconds = 0.5  # type: ignore[misc]
    run = device.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    assert "no answer within 0.5 s" in run.refused
    assert device._child is None


@pytest.mark.parametrize(
    "answer",
    [
        "return {}, []",
        "return {'tensors': [2], 'embeddings': None, 'refused': ''}, [b'123']",
        "return {'tensors': [1, 2], 'embeddings': [4], 'refused': ''}, [b'12']",
        "return {'tensors': None, 'embeddings': None, 'refused': ''}, [b'1' * (1 << 20)]",
    ],
)
def test_an_answer_that_makes_no_sense_is_a_refusal(answer: str, bundle: Bundle, scripted: Callable[[str], Here]) -> None:
    run = scripted(answer).embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    assert run.embeddings is None
    assert "protocol" in run.refused or "bytes" in run.refused


def test_a_damaged_installation_is_not_blamed_on_the_artifact(bundle: Bundle, scripted: Callable[[str], Here]) -> None:
    device = scripted("import os; os.abort()")
    device.broken = "12 files are missing; install it"
    with pytest.raises(ConfigError, match="damaged while it ran: 12 files are missing"):
        device.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)


def test_a_worker_that_does_not_start_says_why(bundle: Bundle) -> None:
    device = Here(PROFILE)
    device.script = "raise SystemExit('no such package')"
    with pytest.raises(ConfigError, match=r"does not start.*no such package.*devices doctor"):
        device.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    device.close()
    with pytest.raises(ConfigError, match="is closed"):
        device.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)


def test_another_bundle_under_the_same_path_is_noticed(bundle: Bundle, device: Here, tmp_path: Path) -> None:
    copy = tmp_path / "copy.samespace"
    shutil.copytree(CORPUS.parent / "bundle-v1" / next((CORPUS.parent / "bundle-v1").glob("*.samespace")).name, copy)
    bundle.path = copy
    with pytest.raises(ConfigError, match="another bundle there"):
        device.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)


def test_a_changed_file_is_refused_over_there_too(bundle: Bundle, device: Here, tmp_path: Path) -> None:
    copy = tmp_path / "copy.samespace"
    shutil.copytree(bundle.path, copy)
    victim = copy / bundle.artifact("onnx-int8").spec.path
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    bundle.path = copy
    with pytest.raises(ConfigError, match="was changed"):
        device.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)


def test_threads_are_the_profiles_where_the_check_does_not_say(bundle: Bundle, scripted: Callable[[str], Here]) -> None:
    device = scripted("raise ValueError(question['options'])")
    for asked, told in [(0, 1), (3, 3)]:
        with pytest.raises(ConfigError, match=f"'threads': {told}"):
            device.embed(bundle, "onnx-int8", "onnx", [], replace(OPTIONS, threads=asked))
