"""ARM processors under QEMU, for real: sysroot, worker and runtimes. The set ``arm64`` is installed where it is missing."""

import contextlib
import hashlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from samespace.edge.devices import cli, load_profile
from samespace.edge.devices.cache import damage, set_folder
from samespace.edge.devices.host import HostDevice
from samespace.edge.devices.qemu_user import QemuUserDevice
from samespace.edge.devices.sysroot import Sysroot, guest_sdk, sysroot
from samespace.sdk import Bundle, ProbeSet, RuntimeOptions
from samespace.sdk.devices import DeviceRun, open_device
from samespace.sdk.errors import ConfigError
from samespace.sdk.metrics import cosine

from .guide import run_section

pytestmark = pytest.mark.devices

OPTIONS = RuntimeOptions(threads=1)
JOBS = [
    ("onnx-int8", "onnx"),
    ("ort-fp32", "ort"),
    ("tflite-int8-dynamic", "tflite"),
    ("tflite-int8-dynamic", "tflite_runtime"),
]
#: 1 - cosine to this machine: static int8 and float by the bars of docs/devices.md; dynamic int8 rounds its activations anew.
TO_HOST = {"onnx-int8": 1e-5, "ort-fp32": 1e-6, "tflite-int8-dynamic": 5e-4}


@pytest.fixture(scope="session")
def arm64() -> Sysroot:
    found = sysroot("arm64")
    found.install()
    return found


@pytest.fixture
def own_cache(arm64: Sysroot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sysroot:
    """The sysroot in a cache folder of this test's own, to break."""
    folder = tmp_path / "cache"
    shutil.copytree(arm64.folder, folder / "arm64", symlinks=True)
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(folder))
    return sysroot("arm64")


def worker_pid(device: QemuUserDevice) -> int:
    assert device._child is not None
    return device._child._child._process.pid


def has_ended(pid: int, seconds: float) -> bool:
    """Whether a process, which need not be a child of this one, ends within that time."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            return bool(select.select([handle], [], [], seconds)[0])
        finally:
            os.close(handle)
    return True


@pytest.mark.usefixtures("arm64")
def test_a53_embeds_as_this_machine_does_and_the_same_when_run_again(bundle: Bundle) -> None:
    probes = ProbeSet.from_bundle(bundle)
    hashes: list[list[str]] = []
    for _ in range(2):
        device = open_device("a53")
        assert isinstance(device, QemuUserDevice)
        try:
            runs = [device.embed(bundle, artifact, runtime, probes.images, OPTIONS) for artifact, runtime in JOBS]
            pid = worker_pid(device)
        finally:
            device.close()
        assert has_ended(pid, 10)
        hashes.append([judged(run, bundle, probes, *job) for run, job in zip(runs, JOBS, strict=True)])
    assert hashes[0] == hashes[1]


def judged(run: DeviceRun, bundle: Bundle, probes: ProbeSet, artifact: str, runtime: str) -> str:
    assert run.refused == ""
    assert run.tensors is not None
    assert run.embeddings is not None
    np.testing.assert_array_equal(run.tensors, probes.golden)
    here = HostDevice().embed(bundle, artifact, runtime, probes.images, OPTIONS)
    assert here.embeddings is not None
    assert float((1 - cosine(run.embeddings, here.embeddings)).max()) <= TO_HOST[artifact]
    assert run.runtime_version == here.runtime_version
    assert run.host["machine"] == "aarch64"
    assert run.host["processor"] == "cortex-a53, emulated"
    return hashlib.sha256(run.embeddings.tobytes()).hexdigest()


class Planted(QemuUserDevice):
    """Runs a script of the test's own in the guest, in the place of the worker."""

    script = ""

    def command(self) -> Sequence[str]:
        return [*self._sysroot.python(self._sysroot.root, self._runs.cpu, guest_sdk()), "-c", self.script]


@pytest.fixture
def planted(arm64: Sysroot) -> Iterator[Planted]:
    device = Planted(load_profile("a53"))
    yield device
    device.close()


#: Says hello; asked to embed, it maps a page and runs one machine instruction there, then returns.
_INSTRUCTION = """
import ctypes, mmap, struct
from samespace.sdk.runtimes.child_frames import serve
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(struct.pack("<II", {instruction}, 0xD65F03C0))
def answer(question, parts):
    if question["do"] == "hello":
        return {{"host": {{}}, "versions": {{}}}}, []
    ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    return {{"tensors": None, "embeddings": None, "refused": "it ran"}}, []
serve(answer)
"""
#: udot v0.4s, v1.16b, v2.16b: of ARMv8.2's dot product.
_UDOT = 0x6E829420


def test_an_instruction_that_the_processor_has_not_is_a_refusal(planted: Planted, bundle: Bundle) -> None:
    planted.script = _INSTRUCTION.format(instruction=_UDOT)
    run = planted.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    assert run.embeddings is None
    assert "SIGILL" in run.refused
    assert "an instruction that the runtime uses" in run.refused


@pytest.mark.usefixtures("arm64")
def test_the_same_instruction_runs_on_a_processor_that_has_it(bundle: Bundle) -> None:
    device = Planted(load_profile("a76"))
    device.script = _INSTRUCTION.format(instruction=_UDOT)
    run = device.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    device.close()
    assert run.refused == "it ran"


def test_the_worker_ends_with_a_check_that_is_killed(arm64: Sysroot, bundle: Bundle) -> None:
    script = (
        "import sys\n"
        "from samespace.sdk.devices import open_device\n"
        "device = open_device('a53')\n"
        "device._started()\n"
        "print(device._child._child._process.pid, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as check:
        assert check.stdout is not None
        pid = int(check.stdout.readline())
        check.send_signal(signal.SIGKILL)
        check.wait()
        assert has_ended(pid, 30)


def test_a_sysroot_that_is_pulled_away_is_named(own_cache: Sysroot, bundle: Bundle) -> None:
    images = ProbeSet.from_bundle(bundle).images[:2]
    device = open_device("a53")
    try:
        assert device.embed(bundle, "onnx-int8", "onnx", images, OPTIONS).refused == ""
        assert isinstance(device, QemuUserDevice)
        shutil.rmtree(own_cache.root / "opt")
        # What the worker has not loaded yet cannot be loaded any more: no fault of the artifact.
        with pytest.raises(ConfigError, match=r"files are missing or changed.*samespace devices install arm64"):
            device.embed(bundle, "tflite-int8-dynamic", "tflite", images, OPTIONS)
    finally:
        device.close()
    with pytest.raises(ConfigError, match=r"device 'a53' needs the set 'arm64': .*missing or changed"):
        open_device("a53")


def test_doctor_finds_what_a_glance_does_not(own_cache: Sysroot) -> None:
    assert CliRunner().invoke(cli.app, ["doctor", "arm64"]).exit_code == 0
    victim = own_cache.root / "usr" / "bin" / "python3.11"
    before = victim.stat()
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert own_cache.check() is None
    result = CliRunner().invoke(cli.app, ["doctor", "arm64"])
    assert result.exit_code == 1
    assert "root/usr/bin/python3.11" in result.output


def test_a_killed_installation_is_not_accepted_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    fifo, programs = tmp_path / "fifo", tmp_path / "bin"
    os.mkfifo(fifo)
    programs.mkdir()
    # Unpacks one package, says so, and then takes for ever.
    real = shutil.which("dpkg-deb")
    stalling = f'#!/bin/sh\n{real} "$@"\n[ "$1" != -x ] || {{ echo $$ > {fifo}; exec cat /dev/zero > /dev/null; }}\n'
    (programs / "dpkg-deb").write_text(stalling)
    (programs / "dpkg-deb").chmod(0o755)
    command = [sys.executable, "-c", "from samespace.edge.devices.cli import app; app()", "install", "arm64"]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(command, env={**os.environ, "PATH": path}, stderr=subprocess.DEVNULL) as process:
        stalled = int(fifo.read_text())
        process.kill()
        process.wait()
        os.kill(stalled, signal.SIGKILL)
    found = sysroot("arm64")
    assert damage("arm64", found.recipe) == "it is not installed"
    with pytest.raises(ConfigError, match="it is not installed"):
        open_device("a53")
    assert list((tmp_path / "cache" / "downloads" / "arm64").rglob("*.deb"))  # they are not fetched again
    found.install()
    assert found.check(thorough=True) is None
    assert not list((tmp_path / "cache").glob(".arm64.*n*w"))
    assert found.remove()
    assert not set_folder("arm64").exists()


@pytest.mark.skipif(sysroot("armhf").check() is not None, reason="samespace devices install armhf")
def test_a7_runs_the_old_interpreter_in_32_bits(bundle: Bundle) -> None:
    probes = ProbeSet.from_bundle(bundle)
    device = open_device("a7")
    try:
        assert device.runtimes("onnx") == ()
        run = device.embed(bundle, "tflite-int8-dynamic", "tflite_runtime", probes.images, OPTIONS)
    finally:
        device.close()
    assert run.refused == ""
    assert run.embeddings is not None
    np.testing.assert_array_equal(run.tensors, probes.golden)
    assert run.host["machine"] == "armv7l"
    assert float(cosine(run.embeddings, probes.reference).min()) > 0.99


def test_the_commands_of_the_guide_run(arm64: Sysroot, bundle: Bundle, tmp_path: Path) -> None:
    run_section("ARM processors", ("a53", "a76"), bundle, tmp_path)
