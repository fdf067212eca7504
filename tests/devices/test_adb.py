"""A phone on a cable, by a fake of adb: what is pushed to it runs under QEMU, as the phone's processor would run it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from samespace.edge.devices import adb
from samespace.edge.devices.sysroot import sysroot
from samespace.sdk import Bundle, ProbeSet, RuntimeOptions
from samespace.sdk.devices import open_device

from .guide import ROOT

pytestmark = pytest.mark.devices
OPTIONS = RuntimeOptions(threads=1)


def test_what_is_pushed_embeds_as_the_emulated_processor(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysroot("arm64").install()
    phone, program = tmp_path / "phone", tmp_path / "bin" / "adb"
    for folder in (phone, program.parent):
        folder.mkdir()
    (tmp_path / "phones.json").write_text(json.dumps({"one": "device"}))
    names = ("ro.product.cpu.abi", "ro.soc.model", "ro.build.version.release")
    (tmp_path / "properties.json").write_text(json.dumps(dict(zip(names, ("arm64-v8a", "none", "15"), strict=True))))
    # Of the installed set QEMU alone is used: its root is the one that was pushed.
    (tmp_path / "before").write_text(f"{sysroot('arm64').qemu} -cpu cortex-a53")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT}/tests/edge/devices/fake_adb.py" "{tmp_path}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    monkeypatch.setattr(adb, "_PLACE", str(phone))
    images = ProbeSet.from_bundle(bundle).images[:4]
    found = {}
    for name in ("adb", "a53"):
        device = open_device(name)
        try:
            for artifact, runtime in [("onnx-int8", "onnx"), ("ort-fp32", "ort"), ("tflite-int8-dynamic", "tflite_runtime")]:
                run = device.embed(bundle, artifact, runtime, images, OPTIONS)
                assert run.refused == ""
                found[name, artifact] = run.embeddings
        finally:
            device.close()
    for artifact in ("onnx-int8", "ort-fp32", "tflite-int8-dynamic"):
        np.testing.assert_array_equal(found["adb", artifact], found["a53", artifact])
    assert list(phone.iterdir()) == []
