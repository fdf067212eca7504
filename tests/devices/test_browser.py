"""A real browser, for real: Chromium, the page, its runtimes. The set ``browser`` is installed where it is missing."""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.edge.devices.browser import BrowserDevice, BrowserSet, browser_set
from samespace.edge.devices.browser.packages import PACKAGES, fetch
from samespace.edge.devices.host import HostDevice
from samespace.edge.devices.profile import load_profile
from samespace.sdk import Bundle, ProbeSet, RuntimeOptions
from samespace.sdk.devices import open_device
from samespace.sdk.errors import ConfigError
from samespace.sdk.metrics import cosine

from .guide import ROOT, run_section

pytestmark = [pytest.mark.devices, pytest.mark.timeout(300)]

PICTURES = runpy.run_path(str(ROOT / "tests" / "edge" / "devices" / "browser_pictures.py"))
OPTIONS = RuntimeOptions(threads=1)
#: 1 - cosine to this machine, by the bars of docs/devices.md.
TO_HOST = {("onnx-int8", "onnx"): 1e-5, ("ort-fp32", "ort"): 1e-6, ("tflite-int8-dynamic", "tflite"): 5e-4}


@pytest.fixture(scope="session", autouse=True)
def installed() -> BrowserSet:
    found = browser_set()
    found.install()
    return found


@pytest.fixture(scope="session")
def toy() -> Any:
    """The model small enough to read, of the client library's tests."""
    return runpy.run_path(str(ROOT / "tests" / "sdk" / "conftest.py"))["Toy"]()


@pytest.fixture
def device() -> Iterator[BrowserDevice]:
    device = BrowserDevice(load_profile("browser"))
    yield device
    device.close()


@pytest.fixture
def webgpu() -> Iterator[BrowserDevice]:
    device = BrowserDevice(load_profile("browser-webgpu"))
    yield device
    device.close()


def left(folder: Path) -> list[str]:
    """Processes that work in a folder, or name it in their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            arguments = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            inside = entry.name.isdigit() and (entry / "cwd").resolve().is_relative_to(folder)
            if inside or str(folder).encode() in arguments:
                found.append(arguments.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        threading.Event().wait(0.1)


def test_the_browser_embeds_as_this_machine_does_and_the_same_when_run_again(bundle: Bundle) -> None:
    probes = ProbeSet.from_bundle(bundle)
    hashes: list[list[str]] = []
    for _ in range(2):
        device = open_device("browser")
        assert isinstance(device, BrowserDevice)
        found, children = [], set()
        try:
            for (artifact, runtime), bar in TO_HOST.items():
                run = device.embed(bundle, artifact, runtime, probes.images, OPTIONS)
                assert run.refused == ""
                assert run.tensors is not None
                assert run.embeddings is not None
                np.testing.assert_array_equal(run.tensors, probes.golden)
                here = HostDevice().embed(bundle, artifact, runtime, probes.images, OPTIONS)
                assert here.embeddings is not None
                assert float((1 - cosine(run.embeddings, here.embeddings)).max()) <= bar
                assert re.fullmatch(r"(onnxruntime-web|@litertjs/core) [\d.]+ \(wasm\)", run.runtime_version)
                assert run.host["isolated"] == "True"
                assert run.host["browser"].startswith("Chromium ")
                found.append(hashlib.sha256(run.embeddings.tobytes()).hexdigest())
                children.add(device._child)
        finally:
            device.close()
        assert len(children) == 1  # one browser for all of them
        hashes.append(found)
    assert hashes[0] == hashes[1]


def test_real_jpegs_and_pngs_are_decoded_to_the_same_bytes(device: BrowserDevice, bundle: Bundle) -> None:
    pictures = [*PICTURES["all_jpegs"](), *PICTURES["all_pngs"](), *PICTURES["all_turned_pngs"]()]
    profile = PICTURES["saved"](PICTURES["scene"](40, 30), "JPEG", icc_profile=adobe_like_profile())
    pictures.append(("a colour profile", profile))
    run = device.embed(bundle, "ort-fp32", "ort", [data for _, data in pictures], OPTIONS)
    assert run.refused == ""
    assert run.tensors is not None
    for (name, data), tensor in zip(pictures, run.tensors, strict=True):
        np.testing.assert_array_equal(tensor, bundle.manifest.model.preprocess(data), err_msg=name)


def adobe_like_profile() -> bytes:
    """A profile whose colours are far from sRGB: red and blue change places in it."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.find(b"rXYZ"), profile.find(b"bXYZ")
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def test_threads_are_to_be_had(device: BrowserDevice, bundle: Bundle) -> None:
    probes = ProbeSet.from_bundle(bundle)
    for artifact, runtime in (("onnx-int8", "onnx"), ("tflite-int8-dynamic", "tflite")):
        one, two = (device.embed(bundle, artifact, runtime, probes.images[:4], RuntimeOptions(threads=n)) for n in (1, 2))
        assert (one.refused, two.refused) == ("", "")
        assert one.embeddings is not None
        assert two.embeddings is not None
        assert float(cosine(one.embeddings, two.embeddings).min()) > 1 - 1e-5


def test_what_is_refused_is_named_and_the_next_goes_on(device: BrowserDevice, toy: Any, tmp_path: Path) -> None:
    broken = toy.artifact(toy.graph(toy.edge)[:-200], "int8")
    toy.write(tmp_path / "phone.samespace", more_artifacts=[broken])
    bundle = Bundle.open(tmp_path / "phone.samespace", trust=toy.trust)
    images = list(toy.images[:3])
    webp = PICTURES["saved"](PICTURES["scene"](40, 30), "WEBP")
    assert "image 3: not JPEG or PNG but WebP" in device.embed(bundle, "onnx-fp32", "onnx", [*images, webp], OPTIONS).refused
    assert "model.int8.onnx" in device.embed(bundle, "onnx-int8", "onnx", images, OPTIONS).refused
    assert device.runtimes("coreml") == ()
    with pytest.raises(ConfigError, match="has no runtime 'tflite'"):
        device.embed(bundle, "onnx-fp32", "tflite", images, OPTIONS)
    run = device.embed(bundle, "onnx-fp32", "onnx", images, OPTIONS)
    assert run.refused == ""
    assert run.embeddings is not None
    assert float(cosine(run.embeddings, toy.embed(images, toy.edge)).min()) > 1 - 1e-6


def test_webgpu_refuses_fp16_that_its_adapter_cannot_compute_and_zeros(webgpu: BrowserDevice, toy: Any, tmp_path: Path) -> None:
    more = [toy.artifact(toy.graph(toy.edge), "fp16"), toy.artifact(toy.graph(toy.edge, scale=0.0), "int8")]
    toy.write(tmp_path / "phone.samespace", more_artifacts=more)
    bundle = Bundle.open(tmp_path / "phone.samespace", trust=toy.trust)
    images = list(toy.images[:3])
    run = webgpu.embed(bundle, "onnx-fp32", "onnx", images, OPTIONS)
    assert run.refused == ""
    assert run.embeddings is not None
    assert float(cosine(run.embeddings, toy.embed(images, toy.edge)).min()) > 1 - 1e-5
    assert run.runtime_version.endswith("(webgpu)")
    half = webgpu.embed(bundle, "onnx-fp16", "onnx", images, OPTIONS)
    if run.host["shader-f16"] == "False":
        assert "fp16 needs shader-f16" in half.refused
        assert half.embeddings is None
    else:
        assert half.refused == ""
    zeros = webgpu.embed(bundle, "onnx-int8", "onnx", images, OPTIONS)
    assert "nothing but zeros for image 0, and no error" in zeros.refused
    assert zeros.embeddings is None


def test_without_an_adapter_webgpu_is_no_device_and_says_so(bundle: Bundle) -> None:
    profile = load_profile("browser-webgpu")
    runs = profile.runs.model_copy(update={"flags": ("--disable-features=WebGPU", "--disable-gpu")})
    device = BrowserDevice(profile.model_copy(update={"runs": runs}))
    try:
        with pytest.raises(ConfigError, match="no WebGPU adapter; use the device 'browser'"):
            device.embed(bundle, "ort-fp32", "ort", ProbeSet.from_bundle(bundle).images[:1], OPTIONS)
    finally:
        device.close()


def test_a_page_that_never_answers_is_given_up_and_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hasty(BrowserDevice):
        embed_seconds, image_seconds = 0.2, 0.0

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    device = Hasty(load_profile("browser"))
    try:
        run = device.embed(bundle, "ort-fp32", "ort", ProbeSet.from_bundle(bundle).images, OPTIONS)
        assert "no answer within 0.2 s" in run.refused
        until(lambda: left(tmp_path / "tmp") == [])
    finally:
        device.close()


def test_a_browser_that_was_ended_costs_one_answer(device: BrowserDevice, bundle: Bundle) -> None:
    images = ProbeSet.from_bundle(bundle).images[:2]
    device.start()
    assert device._child is not None
    folder = Path(device._child._child._folder.name)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and f"--user-data-dir={folder}".encode() in (entry / "cmdline").read_bytes():
            os.kill(int(entry.name), signal.SIGKILL)
            break
    device.embed(bundle, "ort-fp32", "ort", images, OPTIONS)
    assert device.embed(bundle, "ort-fp32", "ort", images, OPTIONS).refused == ""


_KILLED = """
import sys
from samespace.edge.devices.browser import BrowserDevice
from samespace.edge.devices.profile import load_profile
device = BrowserDevice(load_profile("browser"))
device.start()
print("started", flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_leaves_no_browser(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", _KILLED]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        assert any("--user-data-dir" in line for line in left(tmp_path / "tmp"))
        process.kill()
    until(lambda: left(tmp_path / "tmp") == [], 20)


def test_closing_leaves_neither_processes_nor_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Longer than the address of a socket may be.
    long = tmp_path / "tmp" / ("long" * 30)
    long.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    device = BrowserDevice(load_profile("browser"))
    device.start()
    assert any("--user-data-dir" in line for line in left(tmp_path / "tmp"))
    device.close()
    until(lambda: left(tmp_path / "tmp") == [], 10)
    assert list(long.iterdir()) == []


def test_another_package_than_was_pinned_is_refused(tmp_path: Path) -> None:
    package = replace(PACKAGES[-1], integrity="sha512-" + "A" * 86 + "==")
    with pytest.raises(ConfigError, match="npm gave another @litertjs/wasm-utils"):
        fetch(package, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_installation_is_refused_and_mended(
    installed: BrowserSet, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(installed.folder, tmp_path / "cache" / "browser")
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    mine = browser_set()
    assert mine.check(thorough=True) is None
    device = open_device("browser")
    victim = mine.folder / "onnxruntime-web" / "dist" / "ort-wasm-simd-threaded.wasm"
    victim.write_bytes(victim.read_bytes()[:-1])
    try:
        with pytest.raises(ConfigError, match=r"ort-wasm-simd-threaded\.wasm"):
            device.embed(bundle, "ort-fp32", "ort", ProbeSet.from_bundle(bundle).images[:1], OPTIONS)
    finally:
        device.close()
    with pytest.raises(ConfigError, match="samespace devices install browser"):
        open_device("browser")
    mine.install()
    assert mine.check() is None
    assert mine.remove()


def test_the_commands_of_the_guide_run(bundle: Bundle, tmp_path: Path) -> None:
    run_section("A real browser", ("browser",), bundle, tmp_path)
