"""Devices whose work is done by another process over there: :mod:`samespace.edge.devices.worker`, asked over pipes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from samespace.edge.devices.profile import DeviceProfile
from samespace.sdk.bundle import Bundle
from samespace.sdk.devices import DeviceRun
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import digest
from samespace.sdk.runtimes.base import RuntimeOptions
from samespace.sdk.runtimes.child import ChildFailed, ChildRefused, ServingChild
from samespace.sdk.runtimes.registry import runtime_class

__all__ = ["ServedDevice"]

#: What a process ended by -> what that means on a device.
_ENDS = {
    "SIGILL": "the device's processor has not an instruction that the runtime uses: a build for newer processors",
    "SIGSEGV": "the runtime crashed",
    "SIGABRT": "the runtime gave up",
    "SIGKILL": "something ended it from outside: the memory of this machine may be used up",
    "SIGBUS": "the memory or the disk is used up, or a file was cut short while it was used",
}


class ServedDevice(ABC):
    """A :class:`samespace.sdk.devices.Device` that is a process with :mod:`samespace.edge.devices.worker` in it.

    It starts with the first artifact that is asked of it and serves all others, too; after a crash it is started anew for the
    next. A subclass says how it is started, and how a file of this machine is called inside.

    Args:
        profile: what to run; its ``runs`` has ``runtimes``, and may have ``threads``.
    """

    #: Wall-clock seconds until it answers; and for a question, so many and more for each image.
    start_seconds: ClassVar[float] = 180.0
    embed_seconds: ClassVar[float] = 300.0
    image_seconds: ClassVar[float] = 60.0

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self.name = profile.name
        self._child: ServingChild | None = None
        self._closed = False
        self._hello: dict[str, Any] = {"host": {}, "versions": {}}

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What starts the worker; it speaks the protocol on its standard streams. It must end when this process does.

        Raises:
            ConfigError: what it needs is not installed; says how to install it.
        """

    def inside(self, path: Path) -> str:
        """How the device calls a file or folder of this machine that it is to read."""
        return str(path.resolve())

    def describe(self) -> Mapping[str, str]:
        """What the device is, beside what the worker says about itself; for reports."""
        return {}

    def damage(self) -> str | None:
        """What is wrong with the installation, if anything: then a failure is not the artifact's."""
        return None

    def not_started(self, why: str) -> str:
        """What it means that the worker gave no answer at all: the text of a refusal, where that is one of the device.

        Raises:
            ConfigError: it means that the installation does not work.
        """
        raise ConfigError(f"device {self.name!r} does not start: {why}; see what is wrong with: samespace devices doctor")

    def runtimes(self, format: str) -> tuple[str, ...]:
        """Names of the runtimes that the profile lists for artifacts of ``format``, best first."""
        return tuple(name for name in self.profile.runs.runtimes if runtime_class(name).format == format)

    def embed(self, bundle: Bundle, artifact: str, runtime: str, images: Sequence[bytes], options: RuntimeOptions) -> DeviceRun:
        """Preprocess and embed encoded images over there; see :meth:`samespace.sdk.devices.Device.embed`."""
        spec = bundle.artifact(artifact).spec
        if runtime not in self.runtimes(spec.format):
            there = ", ".join(self.runtimes(spec.format)) or "none"
            raise ConfigError(f"device {self.name!r} has no runtime {runtime!r} for {spec.path}; it has: {there}")
        try:
            child = self._started()
        except ChildFailed as error:
            return self._run(runtime, refused=self.not_started(_explained(str(error))))
        question = {
            "do": "embed",
            "bundle": self.inside(bundle.path),
            "manifest_sha256": digest(bundle.seal.manifest),
            "artifact": spec.path,
            "runtime": runtime,
            "options": asdict(self._options(options)),
        }
        size, dim = bundle.manifest.model.preprocess.size, bundle.manifest.model.dim
        seconds = self.embed_seconds + self.image_seconds * len(images)
        most = len(images) * (size * size * 3 + 4 * dim) + (1 << 16)
        try:
            answer, parts = child.ask(question, images, seconds=seconds, most=most)
            run = self._judged(answer, parts, runtime)
        except ChildFailed as error:
            self._end()
            run = self._run(runtime, refused=f"{spec.path} in {runtime} on {self.name}: {_explained(str(error))}")
        except ChildRefused as error:
            self._blame_damage()
            raise ConfigError(
                f"device {self.name!r} cannot run {spec.path}: {error}; see what is wrong with: samespace devices doctor"
            ) from None
        if run.refused:
            self._blame_damage()
        return run

    def close(self) -> None:
        """End the worker; the device cannot be used afterwards."""
        self._closed = True
        self._end()

    def _started(self) -> ServingChild:
        if self._closed:
            raise ConfigError(f"device {self.name!r} is closed; open it again")
        if self._child is None:
            child = ServingChild(self.command())
            try:
                self._hello, _ = child.ask({"do": "hello"}, seconds=self.start_seconds)
            except ChildRefused as error:
                child.close()
                raise ChildFailed(str(error)) from None
            except BaseException:
                child.close()
                raise
            self._child = child
        return self._child

    def _blame_damage(self) -> None:
        """Something failed: it is no fault of the artifact if the installation is not what it was."""
        if wrong := self.damage():
            self._end()
            raise ConfigError(f"device {self.name!r} was damaged while it ran: {wrong}")

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _options(self, options: RuntimeOptions) -> RuntimeOptions:
        """As asked; where the runtime may choose its threads, the profile's number."""
        threads = options.threads or getattr(self.profile.runs, "threads", 0)
        return RuntimeOptions(threads, options.batch_size, optimise=options.optimise)

    def _judged(self, answer: Mapping[str, Any], parts: Sequence[bytes], runtime: str) -> DeviceRun:
        if "config" in answer:
            self._blame_damage()
            raise ConfigError(f"device {self.name!r}: {answer['config']}")
        try:
            rest = list(parts)
            tensors = _array(answer["tensors"], rest, np.uint8)
            embeddings = _array(answer["embeddings"], rest, np.float32)
            return self._run(runtime, tensors, embeddings, str(answer["refused"]))
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ChildFailed(f"an answer that is not of the protocol ({error})") from None

    def _run(
        self,
        runtime: str,
        tensors: npt.NDArray[np.uint8] | None = None,
        embeddings: npt.NDArray[np.float32] | None = None,
        refused: str = "",
    ) -> DeviceRun:
        version = self._hello["versions"].get(runtime, "unknown")
        return DeviceRun(tensors, embeddings, version, refused, {**self._hello["host"], **self.describe()})


def _array(shape: Any, parts: list[bytes], kind: type[Any]) -> Any:
    """The next of the byte strings in that shape; None where there is no shape."""
    if shape is None:
        return None
    data = np.frombuffer(parts.pop(0), np.dtype(kind).newbyteorder("<"))
    if data.size != math.prod(shape):
        raise ValueError(f"{data.size} values for the shape {shape}")
    return data.reshape(shape).astype(kind)


def _explained(end: str) -> str:
    meaning = next((text for name, text in _ENDS.items() if name in end), "")
    return f"{end} - {meaning}" if meaning else end
