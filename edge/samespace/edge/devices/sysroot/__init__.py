"""Sysroots: a Debian of another architecture with Python, the runtimes and samespace.sdk, in a folder, for QEMU to run.

Made as a plain user from the packages of the host's own apt sources, unpacked and not installed: no root, no foreign
architecture in the host's dpkg, no binfmt, no chroot.
"""

from samespace.edge.devices.sysroot.build import Sysroot, sysroot
from samespace.edge.devices.sysroot.guest import guest_sdk

__all__ = ["Sysroot", "guest_sdk", "sysroot"]
