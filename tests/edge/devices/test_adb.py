"""Phones on a cable, by a fake of adb: what runs there is the real worker, by this machine's Python."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samespace.edge.devices import adb
from samespace.edge.devices.host import HostDevice
from samespace.edge.devices.profile import load_profile
from samespace.edge.devices.registry import open_device
from samespace.sdk import Bundle, ProbeSet, RuntimeOptions, TrustStore
from samespace.sdk.errors import ConfigError
from samespace.sdk.signing import PublicKey

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fake needs a POSIX shell and GNU tar")
CORPUS = Path(__file__).parents[2] / "corpus" / "bundle-v2"
OPTIONS = RuntimeOptions(threads=1)
SERIAL = "R58SECRET"
#: In the place of the set's dynamic linker: leaves out what is for that, and starts this machine's Python.
LINKER = f'#!/bin/sh\nshift 3\nunset PYTHONHOME\nexec "{sys.executable}" "$@"\n'


class Fake:
    """A computer with adb and perhaps a phone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / "phone"
        self.place.mkdir(parents=True)
        self.plug({SERIAL: "device"})
        self.properties()
        program = folder / "bin" / "adb"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("fake_adb.py")}" "{folder}" "$@"\n')
        program.chmod(0o755)

    def plug(self, phones: dict[str, str]) -> None:
        """Let these be the phones."""
        (self.folder / "phones.json").write_text(json.dumps(phones))

    def properties(self, **more: str) -> None:
        """Let the phone be of that kind."""
        about = {"ro.product.cpu.abi": "arm64-v8a", "ro.soc.model": "SM8550", "ro.build.version.release": "15"}
        (self.folder / "properties.json").write_text(json.dumps(about | {f"ro.{k}": v for k, v in more.items()}))

    def unplug(self) -> None:
        """Take the cable out: nothing is listed, and what runs over it ends."""
        self.plug({})
        for pid in (self.folder / "shells").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)

    @property
    def left(self) -> list[str]:
        """What is on the phone."""
        return sorted(path.name for path in self.place.iterdir())


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{fake.folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    linker = tmp_path / "root" / "lib" / "ld-linux-aarch64.so.1"
    linker.parent.mkdir(parents=True)
    linker.write_text(LINKER)
    linker.chmod(linker.stat().st_mode | stat.S_IXUSR)
    found = SimpleNamespace(root=tmp_path / "root", check=lambda: None, require=lambda: None, variables=lambda root, sdk: {})
    monkeypatch.setattr(adb, "sysroot", lambda name: found)
    monkeypatch.setattr(adb, "_PLACE", str(fake.place))
    return fake


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    trust = TrustStore(tmp_path / "trust")
    trust.add(PublicKey.load(CORPUS / "signer.pub.pem"), "corpus")
    return Bundle.open(next(CORPUS.glob("*.samespace")), trust=trust)


@pytest.fixture
def device(fake: Fake) -> Iterator[Any]:
    device = open_device("adb")
    yield device
    with contextlib.suppress(ConfigError):
        device.close()


def test_it_embeds_as_this_machine_does_and_leaves_nothing(fake: Fake, device: Any, bundle: Bundle) -> None:
    probes = ProbeSet.from_bundle(bundle)
    for artifact, runtime in [("ort-fp32", "ort"), ("tflite-int8-dynamic", "tflite")]:
        there = device.embed(bundle, artifact, runtime, probes.images[:4], OPTIONS)
        here = HostDevice().embed(bundle, artifact, runtime, probes.images[:4], OPTIONS)
        assert there.refused == ""
        np.testing.assert_array_equal(there.tensors, probes.golden[:4])
        np.testing.assert_array_equal(there.embeddings, here.embeddings)
        # Nothing tells this phone from another of its kind.
        assert there.host["processor"] == "SM8550"
        assert there.host["system"] == "Android 15"
        assert SERIAL not in str(there.host)
    assert len(fake.left) == 1
    device.close()
    assert fake.left == []


@pytest.mark.parametrize(
    ("phones", "message"),
    [
        ({}, "lists no phone: plug one in"),
        ({"a": "device", "b": "device"}, "2 phones are plugged in: set ANDROID_SERIAL"),
        ({"a": "unauthorized"}, "does not trust this computer: unlock it"),
        ({"a": "offline"}, "is offline: plug it in again"),
        ({"a": "no permissions; see [http://developer.android.com]"}, "udev rules"),
        ({"a": "sideload"}, "is in the state 'sideload'"),
    ],
)
def test_without_a_phone_that_can_be_used(fake: Fake, phones: dict[str, str], message: str) -> None:
    fake.plug(phones)
    with pytest.raises(ConfigError, match=message):
        open_device("adb")


def test_one_of_several_is_chosen_as_adb_itself_does_it(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.plug({"a": "offline", "b": "device"})
    monkeypatch.setenv("ANDROID_SERIAL", "b")
    open_device("adb").close()
    monkeypatch.setenv("ANDROID_SERIAL", "c")
    with pytest.raises(ConfigError, match="ANDROID_SERIAL names"):
        open_device("adb")


def test_without_adb(fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="apt install adb"):
        open_device("adb")


def test_a_phone_of_32_bits_is_refused_before_anything_is_pushed(fake: Fake) -> None:
    fake.properties(**{"product.cpu.abi": "armeabi-v7a"})
    with pytest.raises(ConfigError, match="the phone is armeabi-v7a"):
        open_device("adb")
    assert fake.left == []


def test_a_full_phone_says_so_and_what_was_pushed_is_removed(fake: Fake, device: Any, bundle: Bundle) -> None:
    (fake.folder / "full").touch()
    with pytest.raises(ConfigError, match="storage is full"):
        device.embed(bundle, "ort-fp32", "ort", [], OPTIONS)
    device.close()
    assert fake.left == []


def test_a_cable_that_is_taken_out_is_no_fault_of_the_artifact(fake: Fake, device: Any, bundle: Bundle) -> None:
    images = ProbeSet.from_bundle(bundle).images[:2]
    assert device.embed(bundle, "ort-fp32", "ort", images, OPTIONS).refused == ""
    fake.unplug()
    with pytest.raises(ConfigError, match=r"no longer there; .* adb shell rm -rf /.*/samespace-"):
        device.embed(bundle, "ort-fp32", "ort", images, OPTIONS)


def test_a_folder_that_is_cleared_in_the_middle_is_no_fault_of_the_artifact(fake: Fake, device: Any, bundle: Bundle) -> None:
    images = ProbeSet.from_bundle(bundle).images[:2]
    assert device.embed(bundle, "ort-fp32", "ort", images, OPTIONS).refused == ""
    subprocess.run(["rm", "-rf", *fake.place.iterdir()], check=True)
    with pytest.raises(ConfigError, match="what was pushed to the phone is no longer there"):
        device.embed(bundle, "tflite-int8-dynamic", "tflite", images, OPTIONS)
    # As plugged in anew.
    assert device.embed(bundle, "ort-fp32", "ort", images, OPTIONS).refused == ""


def test_a_process_that_is_killed_leaves_nothing_on_the_phone(fake: Fake, device: Any, bundle: Bundle) -> None:
    # The device's own command, started by a process that is killed while the worker waits for a question.
    command = device.command()
    script = (
        f"import subprocess, sys; subprocess.Popen({command!r}, stdin=subprocess.PIPE); print('started', flush=True); input()"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "started\n"
    assert len(fake.left) == 1
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while fake.left and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert fake.left == []


def test_its_profile_says_what_it_was_tested_with() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "devices.md").read_text()
    assert load_profile("adb").runs.kind == "adb"
    assert "## Phones on a cable" in guide
    assert "never with a phone" in guide
