"""The devices of profiles, as ``samespace check --device`` finds them: see :class:`samespace.sdk.devices.DeviceSource`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from samespace.edge.devices.profile import load_profile, profile_names
from samespace.sdk.devices import Device

__all__ = ["DEVICES", "names", "open_device"]

#: Kind in a profile's ``[runs]`` -> class that is called with the profile, loaded when it is needed.
DEVICES: Mapping[str, str] = {
    "adb": "samespace.edge.devices.adb:AdbDevice",
    "host": "samespace.edge.devices.host:HostDevice",
    "browser": "samespace.edge.devices.browser.device:BrowserDevice",
    "qemu-system": "samespace.edge.devices.system:QemuSystemDevice",
    "qemu-user": "samespace.edge.devices.qemu_user:QemuUserDevice",
}

names = profile_names


def open_device(name: str) -> Device:
    """The device that the profile of that name describes."""
    profile = load_profile(name)
    module, _, attribute = DEVICES[profile.runs.kind].partition(":")
    return getattr(importlib.import_module(module), attribute)(profile)
