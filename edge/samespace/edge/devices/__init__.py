"""Devices that a bundle is checked on, real or emulated: one TOML profile each. No torch here."""

from samespace.edge.devices.host import HostDevice
from samespace.edge.devices.profile import DeviceProfile, load_profile, profile_names

__all__ = ["DeviceProfile", "HostDevice", "load_profile", "profile_names"]
