"""Devices with faults, for tests of the check on many devices: real ones behind a fault of their own.

``install`` makes a distribution of this file, so that the check finds these devices as it finds anybody's, in its processes.
``bgr@host`` is the device ``host`` fed with pictures whose channels are swapped; ``gone@host`` ends its process; and so on.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from samespace.sdk import devices
from samespace.sdk.bundle import Bundle
from samespace.sdk.devices import Device, DeviceRun
from samespace.sdk.errors import ConfigError
from samespace.sdk.runtimes.base import RuntimeOptions

#: Environment variable: a folder for what the tests want to know of processes that they do not see.
NOTES = "PLANTED_DEVICES_NOTES"
FAULTS = (
    *("sound", "bgr", "dark", "nearest", "raw", "nan", "noise"),
    *("gone", "mute", "mistaken", "locked", "stubborn", "busy", "once"),
)


def install(folder: Path) -> Path:
    """Write the distribution; returns the folder that has to be on ``sys.path``."""
    about = folder / "planted_devices-1.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(__file__, folder / "planted_devices.py")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-devices\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[samespace.devices]\nplanted = planted_devices\n")
    return folder


def names() -> tuple[str, ...]:
    return tuple(f"{fault}@{base}" for fault in FAULTS for base in os.environ.get("PLANTED_DEVICES_ON", "host").split(","))


def open_device(name: str) -> Device:
    fault, _, base = name.partition("@")
    if fault == "locked":
        raise ConfigError("it is not installed; install it with: samespace devices install locked")
    return Planted(name, fault, devices.open_device(base))


class Planted:
    """A device with a fault."""

    def __init__(self, name: str, fault: str, device: Device) -> None:
        self.name, self._fault, self._device = name, fault, device
        self._child: subprocess.Popen[bytes] | None = None

    def runtimes(self, format: str) -> tuple[str, ...]:
        return self._device.runtimes(format)

    def embed(self, bundle: Bundle, artifact: str, runtime: str, images: Sequence[bytes], options: RuntimeOptions) -> DeviceRun:
        self._misbehave(artifact)
        changed = [_repainted(image, self._fault, bundle.manifest.model.preprocess.size) for image in images]
        run = self._device.embed(bundle, artifact, runtime, changed, options)
        rows = run.embeddings
        if rows is not None and self._fault == "raw":
            rows = rows * np.linspace(2, 5, len(rows), dtype=np.float32)[:, None]
        if rows is not None and self._fault == "nan":
            rows = np.where(np.arange(len(rows))[:, None] % 2, rows, np.nan).astype(np.float32)
        if rows is not None and self._fault == "noise":
            rows = rows + np.random.default_rng(0).normal(0, 1e-3, rows.shape).astype(np.float32)
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        # The tensors stay as this machine has them: an app does not show them either.
        return DeviceRun(None, rows, run.runtime_version, run.refused, run.host)

    def close(self) -> None:
        self._device.close()
        if self._child is not None and self._fault != "stubborn":
            self._child.terminate()
            self._child.wait()

    def _misbehave(self, artifact: str) -> None:
        note(self.name, f"{artifact} {os.getpid()}")
        if self._fault in ("busy", "stubborn", "mute") and self._child is None:
            # What a device starts: it outlives its parent when nobody ends it.
            self._child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            note(self.name, f"child {self._child.pid}")
        if self._fault == "gone" or (self._fault == "once" and "fp32" in artifact):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "mute":
            threading.Event().wait()
        if self._fault == "mistaken":
            raise KeyError("a mistake in the device's code")


def note(name: str, text: str) -> None:
    """Append a line that a test can read."""
    if folder := os.environ.get(NOTES):
        with (Path(folder) / name).open("a") as file:
            file.write(text + "\n")


def _repainted(image: bytes, fault: str, size: int) -> bytes:
    paint: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "bgr": lambda pixels: pixels[..., ::-1],
        # Mean and deviation of 127.5 taken twice: what comes out lies around the middle.
        "dark": lambda pixels: np.rint(pixels / 2 + 127.5),
        "nearest": lambda pixels: pixels[_floor(len(pixels), size)][:, _floor(pixels.shape[1], size)],
    }
    if fault not in paint:
        return image
    pixels = paint[fault](np.asarray(Image.open(io.BytesIO(image)).convert("RGB")))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _floor(length: int, size: int) -> np.ndarray:
    """The pixel whose area the upper left corner of each new pixel lies in."""
    return np.arange(size) * length // size
