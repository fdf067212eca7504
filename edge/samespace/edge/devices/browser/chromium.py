"""Finding what drives the page: Playwright, and a Chromium that the system or the user has installed."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from samespace.sdk.errors import ConfigError

__all__ = ["VARIABLE", "find_chromium", "playwright_version"]

#: Environment variable that names the executable.
VARIABLE = "SAMESPACE_CHROMIUM"
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """The executable of a Chromium.

    Raises:
        ConfigError: there is none; says how to install one.
    """
    if chosen := os.environ.get(VARIABLE):
        found = shutil.which(chosen)
        if found is None:
            raise ConfigError(f"{VARIABLE} = {chosen} is no program that can be started; name a Chromium, or unset it")
        return str(Path(found).absolute())
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    raise ConfigError(
        f"the browser needs a Chromium, and none is on the path ({', '.join(_NAMES)}): install one (Debian: apt-get install "
        f"chromium-headless-shell), or set {VARIABLE} to its executable"
    )


def playwright_version() -> str:
    """Version of Playwright.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return version("playwright")
    except PackageNotFoundError:
        raise ConfigError("the browser needs the package 'playwright': pip install 'samespace[browser]'") from None
