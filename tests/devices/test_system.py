"""Whole small systems in QEMU, for real. They need the set ``arm64-system``: samespace devices install arm64-system."""

import contextlib
import hashlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samespace.edge.devices import load_profile
from samespace.edge.devices.profile import QemuSystem
from samespace.edge.devices.system import QemuSystemDevice, SystemSet, system_set
from samespace.sdk import Bundle, ProbeSet, RuntimeOptions
from samespace.sdk.devices import open_device
from samespace.sdk.errors import ConfigError

from .guide import run_section

pytestmark = [
    pytest.mark.devices,
    pytest.mark.skipif(system_set().check() is not None, reason="samespace devices install arm64-system"),
]

OPTIONS = RuntimeOptions(threads=1)
JOBS = [
    ("onnx-int8", "onnx"),
    ("ort-fp32", "ort"),
    ("tflite-int8-dynamic", "tflite"),
    ("tflite-int8-dynamic", "tflite_runtime"),
]


@pytest.fixture
def small() -> Iterator[QemuSystemDevice]:
    """A computer that is large enough to start, and not for a runtime that wants much."""
    profile = load_profile("a53-128mb")
    assert isinstance(profile.runs, QemuSystem)
    device = QemuSystemDevice(profile)
    yield device
    device.close()


def worker_pids(device: QemuSystemDevice) -> list[int]:
    """The guard's and QEMU's."""
    assert device._child is not None
    guard = device._child._child._process.pid
    return [guard, *map(int, Path(f"/proc/{guard}/task/{guard}/children").read_text().split())]


def has_ended(pid: int, seconds: float) -> bool:
    """Whether a process, which need not be a child of this one, ends within that time."""
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            return bool(select.select([handle], [], [], seconds)[0])
        finally:
            os.close(handle)
    return True


def hashes(name: str, bundle: Bundle) -> list[str]:
    images = ProbeSet.from_bundle(bundle).images[:4]
    device, found = open_device(name), []
    try:
        for artifact, runtime in JOBS:
            run = device.embed(bundle, artifact, runtime, images, OPTIONS)
            assert run.refused == ""
            assert run.embeddings is not None
            assert run.tensors is not None
            np.testing.assert_array_equal(run.tensors, ProbeSet.from_bundle(bundle).golden[:4])
            found.append(hashlib.sha256(run.embeddings.tobytes()).hexdigest())
            if isinstance(device, QemuSystemDevice):
                assert run.host["memory"] == "512 MB"
                assert 20 <= int(run.host["peak_memory"].removesuffix(" MB")) <= 512
        pids = worker_pids(device) if isinstance(device, QemuSystemDevice) else []
    finally:
        device.close()
    assert all(has_ended(pid, 30) for pid in pids)
    return found


def test_a_whole_system_computes_the_very_bits_that_user_mode_does(bundle: Bundle) -> None:
    assert hashes("a53-512mb", bundle) == hashes("a53", bundle)


def test_a_computer_too_small_for_the_worker_is_a_refusal(bundle: Bundle) -> None:
    # Too little for Python and the sdk: killed by the kernel in there, and a refusal here.
    profile = load_profile("a53-128mb")
    less = profile.model_copy(update={"runs": profile.runs.model_copy(update={"memory_mb": 80})})
    device = QemuSystemDevice(less)
    try:
        run = device.embed(bundle, "onnx-int8", "onnx", ProbeSet.from_bundle(bundle).images[:1], OPTIONS)
    finally:
        device.close()
    assert run.embeddings is None
    assert re.search(r"out of memory|thrashing", run.refused), run.refused
    assert "needs more than the 80 MB of a53-128mb" in run.refused


def test_an_image_that_needs_more_memory_than_there_is_is_refused_and_not_the_next(
    small: QemuSystemDevice, bundle: Bundle
) -> None:
    stream = BytesIO()
    # 5000 x 5000 pixels of nothing: 75 MB when it is decoded, and 128 MB are not enough for twice that.
    Image.new("RGB", (5000, 5000)).save(stream, "PNG")
    images = ProbeSet.from_bundle(bundle).images[:1]
    refused = small.embed(bundle, "tflite-int8-dynamic", "tflite", [stream.getvalue()], OPTIONS)
    assert refused.embeddings is None
    assert "needs more than the 128 MB of a53-128mb" in refused.refused
    run = small.embed(bundle, "tflite-int8-dynamic", "tflite", images, OPTIONS)
    assert run.refused == ""
    assert run.embeddings is not None


def test_qemu_ends_with_a_check_that_is_killed() -> None:
    script = (
        "import sys\n"
        "from samespace.sdk.devices import open_device\n"
        "device = open_device('a53-256mb')\n"
        "device._started()\n"
        "guard = device._child._child._process.pid\n"
        "print(guard, open(f'/proc/{guard}/task/{guard}/children').read(), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as check:
        assert check.stdout is not None
        pids = list(map(int, check.stdout.readline().split()))
        assert len(pids) == 2
        check.send_signal(signal.SIGKILL)
        check.wait()
        assert all(has_ended(pid, 30) for pid in pids)


def test_a_kernel_that_does_not_start_is_the_installations_fault(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it had been damaged before it was recorded: no glance can see it, and no artifact is blamed.
    broken = tmp_path / "initramfs"
    broken.write_bytes(system_set().initramfs.read_bytes()[: 1 << 20])
    monkeypatch.setattr(SystemSet, "initramfs", property(lambda _: broken))
    device = open_device("a53-128mb")
    try:
        with pytest.raises(ConfigError, match=r"device 'a53-128mb' does not start: .*devices doctor"):
            device.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    finally:
        device.close()


def test_doctor_starts_it_and_the_commands_of_the_guide_run(bundle: Bundle, tmp_path: Path) -> None:
    run_section("Small memory", ("a53-256mb",), bundle, tmp_path)
