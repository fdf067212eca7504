"""What a device is to the check: something that embeds encoded images with an artifact of a bundle, in its own way."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import ConfigError
from samespace.sdk.runtimes.base import RuntimeOptions

__all__ = ["DEVICE_GROUP", "Device", "DeviceRun", "DeviceSource", "describe_host", "device_names", "open_device"]

#: Entry points of this group name a :class:`DeviceSource`.
DEVICE_GROUP = "samespace.devices"


@dataclass(frozen=True, eq=False)
class DeviceRun:
    """What a device made of the images; not judged yet.

    Attributes:
        tensors: ``(n, size, size, 3)`` uint8, its preprocessing of the images; None when it does not show them.
        embeddings: ``(n, d)`` float32, or None when it refused to embed.
        runtime_version: of the engine, e.g. ``"onnxruntime 1.29.0"``.
        refused: why there are no embeddings; empty when there are.
        host: what the device says about itself, for the report.
    """

    tensors: npt.NDArray[np.generic] | None
    embeddings: npt.NDArray[np.float32] | None
    runtime_version: str
    refused: str = ""
    host: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Device(Protocol):
    """A machine, real or emulated.

    One process of it serves many artifacts: what it starts, it starts with the first that is asked of it, keeps, and ends in
    :meth:`close`. It is used by one thread at a time.
    """

    #: How reports call it.
    name: str

    def runtimes(self, format: str) -> tuple[str, ...]:
        """Names of the runtimes that it has for artifacts of ``format``, best first."""
        ...

    def embed(self, bundle: Bundle, artifact: str, runtime: str, images: Sequence[bytes], options: RuntimeOptions) -> DeviceRun:
        """Preprocess and embed encoded images with one artifact.

        Raises:
            ConfigError: the device cannot do that at all (no such artifact, runtime not there). An artifact that fails, or
                gives what is no embedding, is no error here but :attr:`DeviceRun.refused`.
        """
        ...

    def close(self) -> None:
        """End all that it started; it cannot be used afterwards."""
        ...


class DeviceSource(Protocol):
    """What an entry point of the group ``samespace.devices`` names: a module or an object that has devices."""

    def names(self) -> tuple[str, ...]:
        """Of its devices."""
        ...

    def open_device(self, name: str) -> Device:
        """One of them; starts nothing yet that costs time.

        Raises:
            ConfigError: its profile is wrong, or what it needs is not installed; says how to install it.
        """
        ...


def device_names() -> tuple[str, ...]:
    """Names of the devices that there are, whether or not what they need is installed."""
    return tuple(sorted(name for source in _sources() for name in source.names()))


def open_device(name: str = "host") -> Device:
    """The device of that name; close it after use.

    Raises:
        ConfigError: there is none, lists those there are; or it cannot be used, says why.
    """
    for source in _sources():
        if name in source.names():
            return source.open_device(name)
    raise ConfigError(
        f"no device is called {name!r}; there are: {', '.join(device_names()) or 'none (is samespace installed?)'}"
    )


def _sources() -> list[DeviceSource]:
    return [entry.load() for entry in entry_points(group=DEVICE_GROUP)]


def describe_host() -> dict[str, str]:
    """This machine in words, without anything that names its owner."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
