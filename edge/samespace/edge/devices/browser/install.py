"""The set ``browser``: the runtimes that the page runs. Chromium and Playwright are not in it; it says if they are missing."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from samespace.edge.devices.browser.chromium import find_chromium, playwright_version
from samespace.edge.devices.browser.packages import PACKAGES, fetch, unpack
from samespace.edge.devices.cache import cache_dir, damage, installing, read_record, remove_set, set_folder
from samespace.sdk.cli.progress import progress
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import digest

__all__ = ["BrowserSet", "browser_set"]

#: Raised when this file makes something else of the same packages.
_RECIPE = 1


def browser_set(name: str = "browser") -> BrowserSet:
    """The set, installed or not."""
    return BrowserSet(name)


class BrowserSet:
    """An :class:`samespace.edge.devices.installs.Installable`: onnxruntime-web and LiteRT.js, from npm."""

    def __init__(self, name: str = "browser") -> None:
        self.name = name
        self.description = "onnxruntime-web and LiteRT.js for the devices browser and browser-webgpu"
        self.recipe = f"{_RECIPE}-{digest(repr(PACKAGES).encode())[:16]}"

    @property
    def folder(self) -> Path:
        """Where the packages are when they are installed."""
        return set_folder(self.name)

    def install(self) -> None:
        """Fetch and unpack what is not there and good; see :class:`~samespace.edge.devices.installs.Installable`."""
        # First what this cannot bring, before anything is fetched.
        find_chromium()
        playwright_version()
        lock: dict[str, Any] = {}
        with installing(self.name, self.recipe, lock) as new:
            if new is None:
                return
            with progress(f"install {self.name}", len(PACKAGES)) as bar:
                for package in PACKAGES:
                    # Tarballs stay until all is done: what was fetched is not fetched again after an interruption.
                    tarball = fetch(package, self._downloads)
                    try:
                        unpack(package, tarball, new)
                    except (tarfile.TarError, EOFError) as error:
                        tarball.unlink()
                        raise ConfigError(f"{tarball.name} cannot be unpacked ({error}); it was removed, try again") from None
                    bar.advance(note=package.name)
            lock["packages"] = [{key: asdict(package)[key] for key in ("name", "version", "integrity")} for package in PACKAGES]
        # Its tarballs are of no more use; the lock file is not held now, and another process would fetch its own.
        for package in PACKAGES:
            (self._downloads / package.tarball).unlink(missing_ok=True)

    def check(self, *, thorough: bool = False) -> str | None:
        """What is wrong with it; see :class:`~samespace.edge.devices.installs.Installable`."""
        if wrong := damage(self.name, self.recipe, thorough=thorough):
            return f"{wrong}; install it: samespace devices install {self.name}"
        try:
            find_chromium()
            playwright_version()
            if thorough:
                self._try()
        except ConfigError as error:
            return str(error)
        return None

    def remove(self) -> bool:
        """Remove it with its downloads; whether there was anything."""
        return remove_set(self.name, self._downloads)

    def details(self) -> Mapping[str, str]:
        """Versions and size of what is installed."""
        record = read_record(self.name)
        if record is None:
            return {}
        return {"size": record.size, **{one["name"]: one["version"] for one in record.lock["packages"]}}

    def _try(self) -> None:
        """Start the browser."""
        from samespace.edge.devices.browser.device import BrowserDevice
        from samespace.edge.devices.profile import load_profile

        device = BrowserDevice(load_profile("browser"))
        try:
            device.start()
        finally:
            device.close()

    @property
    def _downloads(self) -> Path:
        return cache_dir() / "downloads" / self.name
