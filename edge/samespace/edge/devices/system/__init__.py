"""A whole small computer in QEMU: Debian's kernel, an initramfs of ours, and the sysroot by a shared folder.

User-mode emulation (:mod:`samespace.edge.devices.qemu_user`) has this machine's memory. Here a kernel with so many megabytes
decides whether a runtime gets what it asks for, so that "does it run on a phone with little memory" has an answer.
"""

from samespace.edge.devices.system.device import QemuSystemDevice
from samespace.edge.devices.system.install import SystemSet, system_set

__all__ = ["QemuSystemDevice", "SystemSet", "system_set"]
