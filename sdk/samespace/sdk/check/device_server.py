"""One device in a process of its own: ``python -m samespace.sdk.check.device_server``, asked by :mod:`.device_process`.

It opens the device and the bundle once and measures one artifact after the other. So a runtime that crashes, or a device that
never answers, costs the check of many devices nothing but that device's cell. What a device starts belongs to this process's
group and ends with it; when the parent vanishes, this process closes the device and ends by itself.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.measure import measure
from samespace.sdk.check.report import Settings
from samespace.sdk.check.searched import is_url, read_gallery, searched
from samespace.sdk.devices import Device, DeviceRun, open_device
from samespace.sdk.errors import SamespaceError
from samespace.sdk.manifest import FORMATS
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import RuntimeOptions
from samespace.sdk.runtimes.child_frames import serve
from samespace.sdk.runtimes.registry import runtimes_for

__all__ = ["main"]

#: Seconds that a device has to close itself once nobody asks any more.
_GRACE = 10.0

_Answer = tuple[dict[str, Any], list[bytes]]


class _Noted:
    """A device that remembers what it gave last: a report has no room for it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.name = device.name
        self.embeddings: npt.NDArray[np.float32] | None = None

    def runtimes(self, format: str) -> tuple[str, ...]:
        return self._device.runtimes(format)

    def embed(self, bundle: Bundle, artifact: str, runtime: str, images: Sequence[bytes], options: RuntimeOptions) -> DeviceRun:
        self.embeddings = None
        run = self._device.embed(bundle, artifact, runtime, images, options)
        self.embeddings = run.embeddings
        return run

    def close(self) -> None:
        self._device.close()


class _Server:
    """Answers ``open`` once, then any number of ``measure``, then ``close``."""

    def __init__(self) -> None:
        self._device: _Noted | None = None

    def answer(self, question: Any, parts: list[bytes]) -> _Answer:
        try:
            return getattr(self, f"_{question['do']}")(question)
        except SamespaceError:
            raise
        except Exception as error:
            # A mistake in a device's code: its kind says more than its text.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.close()

    def _open(self, question: Any) -> _Answer:
        # Paths in reports and messages are to be as the user wrote them.
        os.chdir(question["folder"])
        self._device = _Noted(open_device(question["device"]))
        self._bundle = Bundle.open(Path(question["bundle"]), allow_unsigned=question["allow_unsigned"])
        self._probes = ProbeSet.from_bundle(self._bundle)
        self._gallery: str | None = question["gallery"]
        self._sample: GallerySample | None = read_gallery(self._gallery)
        self._settings = Settings.model_validate(question["settings"])
        return {"runtimes": {format: list(self._device.runtimes(format)) for format in FORMATS}}, []

    def _measure(self, question: Any) -> _Answer:
        artifact, runtime = question["artifact"], question["runtime"]
        assert self._device is not None
        # The service admits the artifact, whatever runs it; here it may be another runtime than on the device.
        here = next(iter(runtimes_for(self._bundle.artifact(artifact).spec.format)), None) if is_url(self._gallery) else None
        with searched(self._gallery, self._sample, self._bundle, artifact, here) as gallery:
            report = measure(
                self._bundle,
                artifact,
                runtime,
                device=self._device,
                gallery=gallery,
                probes=self._probes,
                settings=self._settings,
            )
        rows = self._device.embeddings
        data = b"" if rows is None else np.ascontiguousarray(rows, "<f4").tobytes()
        shape = None if rows is None else list(rows.shape)
        return {"shape": shape}, [report.model_dump_json().encode(), data]

    def _close(self, question: Any) -> _Answer:
        self.close()
        return {}, []


def _end_with_parent(pipe: int) -> None:
    """Ask this process to end when the other end of ``pipe`` is closed, whatever the main thread is doing."""
    poll = select.poll()
    poll.register(pipe, 0)  # no event but the hang-up, which is always told
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(_GRACE)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def main() -> None:
    """Serve until the parent closes the pipe."""
    server = _Server()
    if os.name == "posix":
        signal.signal(signal.SIGTERM, _leave)
        # What a device starts must not keep the pipe open: the duplicate is not inherited.
        threading.Thread(target=_end_with_parent, args=(os.dup(0),), daemon=True).start()
    try:
        serve(server.answer)
    finally:
        if os.name == "posix":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already
        server.close()


if __name__ == "__main__":
    main()
