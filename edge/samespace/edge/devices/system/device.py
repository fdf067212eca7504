"""A whole computer with little memory as a device: what its kernel ends for want of memory is a refusal that says so."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from samespace.edge.devices.profile import DeviceProfile, QemuSystem
from samespace.edge.devices.served import ServedDevice
from samespace.edge.devices.sysroot import guest_sdk
from samespace.edge.devices.system.install import system_set
from samespace.sdk.bundle import Bundle
from samespace.sdk.devices import DeviceRun
from samespace.sdk.errors import ConfigError
from samespace.sdk.runtimes.base import RuntimeOptions
from samespace.sdk.runtimes.child import ChildFailed, ServingChild

__all__ = ["QemuSystemDevice", "ended"]

_GUARD = Path(__file__).with_name("guard.py")
#: What the kernel is told: its console, to say little, to end (not to wait) when it cannot go on; no memory for drivers only.
_KERNEL = "console=ttyAMA0 quiet loglevel=3 panic=-1 cma=0"
#: What programs, runtimes and the kernel say when there is no memory left.
_NO_MEMORY = re.compile(
    r"out of memory|bad_alloc|MemoryError|Cannot allocate memory|failed to allocate|deadlocked on memory|failed to map segment",
    re.IGNORECASE,
)


_MEND = ": use a device with more memory, or an artifact that needs less (int8, or TFLite instead of ONNX)"


class QemuSystemDevice(ServedDevice):
    """A :class:`samespace.sdk.devices.Device` that is a kernel with so much memory and the worker as its only program.

    It reaches three folders of this machine, and only to read them: the sysroot, samespace.sdk, the bundle. It has no network.

    Args:
        profile: of the kind ``qemu-system``.

    Raises:
        ConfigError: the sets are not installed, or damaged.
    """

    start_seconds: ClassVar[float] = 300.0
    embed_seconds: ClassVar[float] = 600.0
    image_seconds: ClassVar[float] = 120.0

    def __init__(self, profile: DeviceProfile) -> None:
        super().__init__(profile)
        if not isinstance(profile.runs, QemuSystem):
            raise ConfigError(f"device profile {profile.name!r}: is of the kind {profile.runs.kind!r}, not 'qemu-system'")
        self._runs = profile.runs
        self._set = system_set()
        self._shared: Path | None = None
        self._served = 0
        self._peak = ""
        self._needed()

    def start(self, bundle: Bundle | None = None) -> None:
        """Start it now, not with the first artifact.

        Args:
            bundle: what it is to run: a computer gets its folders when it is switched on.

        Raises:
            ConfigError: it does not start, or has not memory enough for the worker alone.
        """
        if bundle is not None:
            self._share(bundle.path.resolve())
        try:
            self._started()
        except ChildFailed as error:
            raise ConfigError(self.not_started(str(error))) from None

    def embed(self, bundle: Bundle, artifact: str, runtime: str, images: Sequence[bytes], options: RuntimeOptions) -> DeviceRun:
        """As any device; see :meth:`samespace.sdk.devices.Device.embed`."""
        self._share(bundle.path.resolve())
        others = self._served
        run = super().embed(bundle, artifact, runtime, images, options)
        if others and _NO_MEMORY.search(run.refused):
            # Not for what other artifacts have left in memory: once more, alone.
            self._end()
            run = super().embed(bundle, artifact, runtime, images, options)
        if _NO_MEMORY.search(run.refused):
            self._end()
            run = replace(run, refused=f"{run.refused}; it needs more than the {self._runs.memory_mb} MB of {self.name}{_MEND}")
        return run

    def command(self) -> Sequence[str]:
        """What starts the guard, and that QEMU."""
        self._needed()
        return [sys.executable, "-I", str(_GUARD), str(os.getpid()), *self.qemu(guest_sdk())]

    def qemu(self, sdk: Path) -> list[str]:
        """The emulator's command line; the worker speaks on its standard streams, the kernel on standard error.

        Args:
            sdk: from :func:`~samespace.edge.devices.sysroot.guest.guest_sdk`.
        """
        shares = {"sysroot": self._set.sysroot.root, "sdk": sdk, "bundle": self._bundle_folder() or sdk}
        machine = ["-machine", "virt,gic-version=2", "-accel", "tcg", "-cpu", self._runs.cpu, "-smp", "1"]
        memory = ["-m", str(self._runs.memory_mb)]
        bare = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none", "-nic", "none"]
        kernel = ["-kernel", str(self._set.kernel), "-initrd", str(self._set.initramfs), "-append", _KERNEL]
        console = ["-chardev", "file,id=console,path=/dev/stderr,append=on", "-serial", "chardev:console"]
        port = ["-device", "virtio-serial-device", "-chardev", "stdio,id=port,signal=off"]
        port += ["-device", "virtserialport,chardev=port,name=worker"]
        told = [*machine, *memory, *bare, *kernel, *console, *port]
        for name, path in shares.items():
            # A comma in a path is written twice.
            there = str(path.resolve()).replace(",", ",,")
            told += ["-fsdev", f"local,id={name},path={there},security_model=none,readonly=on,multidevs=remap"]
            told += ["-device", f"virtio-9p-device,fsdev={name},mount_tag={name}"]
        return [*self._set.qemu(), *told]

    def inside(self, path: Path) -> str:
        """How the device calls the bundle: the only thing of this machine that it is asked to read."""
        found = path.resolve()
        return "/bundle" if found.is_dir() else f"/bundle/{found.name}"

    def damage(self) -> str | None:
        """What is wrong with the sets."""
        return self._set.check()

    def describe(self) -> Mapping[str, str]:
        """The emulated computer, and the most memory that the worker had so far."""
        details = self._set.details()
        told = {
            "processor": f"{self._runs.cpu}, emulated",
            "memory": f"{self._runs.memory_mb} MB",
            "qemu": f"system {details.get('qemu', 'unknown')}",
        }
        return {**told, "peak_memory": self._peak} if self._peak else told

    def not_started(self, why: str) -> str:
        """A worker that finds no memory is a refusal of the device; all else is the installation's."""
        if _NO_MEMORY.search(why):
            return f"Python and samespace.sdk alone do not fit: {why}"
        return super().not_started(why)

    def _started(self) -> ServingChild:
        new = self._child is None
        child = super()._started()
        if new:
            self._served, self._peak = 0, ""
        if "ended" in self._hello:
            told, self._hello = ended(self._hello), {"host": {}, "versions": {}}
            self._end()
            raise ChildFailed(told)
        return child

    def _judged(self, answer: Mapping[str, Any], parts: Sequence[bytes], runtime: str) -> DeviceRun:
        self._served += 1
        if "ended" in answer:
            raise ChildFailed(ended(answer))
        if isinstance(peak := answer.get("peak_kb"), int):
            self._peak = f"{peak / 1024:.0f} MB"
        return super()._judged(answer, parts, runtime)

    def _share(self, path: Path) -> None:
        if self._shared != path:
            self._end()
            self._shared = path

    def _bundle_folder(self) -> Path | None:
        if self._shared is None or self._shared.is_dir():
            return self._shared
        return self._shared.parent

    def _needed(self) -> None:
        if wrong := self.damage():
            raise ConfigError(f"device {self.name!r} needs the set {self._set.name!r}: {wrong}")


def ended(answer: Mapping[str, Any]) -> str:
    """How the worker ended, by what the system's first program says of it.

    Args:
        answer: ``ended``, its exit status in the shell's way; ``killed``, what is said about it where it was
            ended for want of memory; ``printed``, the end of its standard error.
    """
    status, killed, printed = int(answer["ended"]), str(answer.get("killed", "")), str(answer.get("printed", "")).strip()
    if killed.startswith("thrashing"):
        return f"out of memory: {killed.strip()}"
    if killed:
        had = re.search(r"anon-rss:(\d+)kB", killed)
        size = f" when it had {int(had[1]) / 1024:.0f} MB" if had else ""
        return f"out of memory: killed by the device's kernel{size}"
    if _NO_MEMORY.search(printed):
        return f"out of memory: {printed}"
    how = f"exit code {status}"
    if status > 128:
        with contextlib.suppress(ValueError):
            how = signal.Signals(status - 128).name
    return f"it crashed ({how}: {printed})" if printed else f"it crashed ({how})"
