"""A real browser as a device: what :mod:`.driver` does with it, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

from samespace.edge.devices.browser.chromium import find_chromium, playwright_version
from samespace.edge.devices.browser.install import browser_set
from samespace.edge.devices.profile import Browser, DeviceProfile
from samespace.edge.devices.served import ServedDevice
from samespace.sdk.errors import ConfigError
from samespace.sdk.runtimes.child import ChildFailed, ChildRefused

__all__ = ["BrowserDevice"]

#: For the browser to close.
_BYE_SECONDS = 10.0


class BrowserDevice(ServedDevice):
    """A :class:`samespace.sdk.devices.Device` that is a page in a Chromium without a window.

    Args:
        profile: of the kind ``browser``.

    Raises:
        ConfigError: the runtimes, Playwright or Chromium are not installed, or damaged.
    """

    start_seconds: ClassVar[float] = 90.0
    embed_seconds: ClassVar[float] = 120.0
    image_seconds: ClassVar[float] = 20.0

    def __init__(self, profile: DeviceProfile) -> None:
        super().__init__(profile)
        if not isinstance(profile.runs, Browser):
            raise ConfigError(f"device profile {profile.name!r}: is of the kind {profile.runs.kind!r}, not 'browser'")
        self._runs = profile.runs
        self._set = browser_set()
        self._needed()

    def start(self) -> None:
        """Start the browser now, not with the first artifact.

        Raises:
            ConfigError: it does not start.
        """
        try:
            self._started()
        except ChildFailed as error:
            self.not_started(str(error))

    def command(self) -> Sequence[str]:
        """What starts the driver and the browser."""
        self._needed()
        settings = {
            "chromium": find_chromium(),
            "packages": str(self._set.folder),
            "accelerator": self._runs.accelerator,
            "flags": list(self._runs.flags),
        }
        return [sys.executable, "-P", "-m", "samespace.edge.devices.browser.driver", json.dumps(settings)]

    def damage(self) -> str | None:
        """What is wrong with the installation."""
        return self._set.check()

    def describe(self) -> Mapping[str, str]:
        """How the page computes."""
        return {"accelerator": self._runs.accelerator, "playwright": playwright_version()}

    def _needed(self) -> None:
        if wrong := self.damage():
            raise ConfigError(f"device {self.name!r} cannot be used: {wrong}")

    def _end(self) -> None:
        # The browser first, so that it removes its own files; where nobody answers any more, it ends with the driver's pipe.
        if self._child is not None:
            with contextlib.suppress(ChildFailed, ChildRefused):
                self._child.ask({"do": "bye"}, seconds=_BYE_SECONDS)
        super()._end()
