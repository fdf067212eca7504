"""The parent's side of :mod:`samespace.sdk.check.device_server`: a device in a process of its own, asked with time-outs."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.report import CompatibilityReport, Settings
from samespace.sdk.errors import SamespaceError
from samespace.sdk.runtimes.child import ChildFailed, ChildRefused, ServingChild

__all__ = ["DeviceFailed", "DeviceProcess", "DeviceRefused", "Measured", "Task"]

#: Seconds to open a device and the bundle there, and to close it.
_OPEN_SECONDS, _CLOSE_SECONDS = 300.0, 20.0
#: Bytes of a report with its pictures and of the embeddings.
_MOST = 1 << 30


class DeviceRefused(Exception):  # noqa: N818 - a refusal is an answer
    """The device cannot do that, says why; it can be asked again."""


class DeviceFailed(Exception):  # noqa: N818 - as above
    """The device crashed or gave no answer in time; it was ended."""


@dataclass(frozen=True)
class Task:
    """What is checked, the same on every device.

    Attributes:
        bundle: path, as the user gave it.
        gallery: file or URL, or None for the bundle's sample.
        settings: of every measurement.
        allow_unsigned: open a bundle that nobody trusted signed.
        seconds: that one artifact may take on a device.
    """

    bundle: Path
    gallery: str | None = None
    settings: Settings = field(default_factory=Settings)
    allow_unsigned: bool = False
    seconds: float = 900.0


@dataclass(frozen=True, eq=False)
class Measured:
    """One artifact on one device.

    Attributes:
        report: the three layers.
        embeddings: ``(n, d)`` float32 as the device gave them; None when it refused.
    """

    report: CompatibilityReport
    embeddings: npt.NDArray[np.float32] | None


class DeviceProcess:
    """A device that serves many artifacts; start it with :meth:`open`, end it with :meth:`close` or :meth:`kill`.

    Args:
        name: of the device.
        task: what is checked.
    """

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self._task = task
        self._child: ServingChild | None = None
        self._killed = False

    def open(self) -> dict[str, tuple[str, ...]]:
        """Start it; says for each format which runtimes it has.

        Raises:
            DeviceRefused: it cannot be used, or the bundle cannot be opened. DeviceFailed: as :meth:`measure`.
        """
        self._child = ServingChild([sys.executable, "-P", "-m", "samespace.sdk.check.device_server"], ours=True)
        if self._killed:
            self._end()
            raise DeviceFailed("it was ended")
        answer, _ = self._ask(
            {
                "do": "open",
                "device": self.name,
                "folder": str(Path.cwd()),
                "bundle": str(self._task.bundle),
                "allow_unsigned": self._task.allow_unsigned,
                "gallery": self._task.gallery,
                "settings": self._task.settings.model_dump(mode="json"),
            },
            _OPEN_SECONDS,
        )
        return {format: tuple(names) for format, names in answer["runtimes"].items()}

    def measure(self, artifact: str, runtime: str) -> Measured:
        """Check one artifact there.

        Raises:
            DeviceRefused: the device cannot do that; others it may.
            DeviceFailed: it crashed, or gave no answer in time; open it again for more.
        """
        answer, (report, rows) = self._ask({"do": "measure", "artifact": artifact, "runtime": runtime}, self._task.seconds)
        shape = answer.get("shape")
        try:
            embeddings = None if shape is None else np.frombuffer(rows, "<f4").reshape(shape).astype(np.float32)
            return Measured(CompatibilityReport.parse(report, f"device {self.name}"), embeddings)
        except (SamespaceError, ValueError, TypeError) as error:
            self.kill()
            raise DeviceFailed(f"an answer that makes no sense: {error}") from None

    def close(self) -> None:
        """Let the device close itself, then end its process with all that it started."""
        if self._child is not None and not self._killed:
            with contextlib.suppress(ChildRefused, ChildFailed):
                self._child.ask({"do": "close"}, seconds=_CLOSE_SECONDS)
        self._end()

    def kill(self) -> None:
        """End it at once, from any thread; what is being asked fails, and it cannot be opened again."""
        self._killed = True
        self._end()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _ask(self, question: dict[str, Any], seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        child = self._child
        if child is None:
            raise DeviceFailed("its process has ended")
        try:
            return child.ask(question, seconds=seconds, most=_MOST)
        except ChildRefused as error:
            raise DeviceRefused(str(error)) from None
        except ChildFailed as error:
            self._end()
            raise DeviceFailed(str(error)) from None
