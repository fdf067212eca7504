"""Processors by QEMU's user-mode emulation: one program at a time, as a plain user, with the runtimes' own wheels for them.

What is emulated is the processor: the runtimes choose the kernels that this very processor gets. The system calls are
this machine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samespace.edge.devices.profile import DeviceProfile, QemuUser
from samespace.edge.devices.served import ServedDevice
from samespace.edge.devices.sysroot import guest_sdk, sysroot
from samespace.sdk.errors import ConfigError

__all__ = ["QemuUserDevice"]


class QemuUserDevice(ServedDevice):
    """A :class:`samespace.sdk.devices.Device` on an emulated processor.

    Args:
        profile: of the kind ``qemu-user``.

    Raises:
        ConfigError: the sysroot is not installed, or damaged.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        super().__init__(profile)
        if not isinstance(profile.runs, QemuUser):
            raise ConfigError(f"device profile {profile.name!r}: is of the kind {profile.runs.kind!r}, not 'qemu-user'")
        self._runs = profile.runs
        self._sysroot = sysroot(profile.runs.architecture)
        self._needed()

    def command(self) -> Sequence[str]:
        """What starts the worker under QEMU."""
        self._needed()
        sdk = guest_sdk()
        return [*self._sysroot.python(self._sysroot.root, self._runs.cpu, sdk), str(sdk / "worker.py")]

    def damage(self) -> str | None:
        """What is wrong with the sysroot."""
        return self._sysroot.check()

    def describe(self) -> Mapping[str, str]:
        """The emulated processor and the emulator."""
        version = self._sysroot.details().get("qemu", "unknown")
        return {"processor": f"{self._runs.cpu}, emulated", "qemu": f"user mode {version}", "system": "Linux (user mode)"}

    def _needed(self) -> None:
        if wrong := self.damage():
            raise ConfigError(f"device {self.name!r} needs the set {self._sysroot.name!r}: {wrong}")
