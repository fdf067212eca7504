"""What ``samespace devices install`` can install: name of a set -> function that gives its :class:`Installable`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from samespace.sdk.errors import ConfigError

__all__ = ["INSTALLS", "Installable", "load_install"]

#: "module:function", loaded when it is needed; the function is called with the set's name.
INSTALLS: Mapping[str, str] = {
    "arm64": "samespace.edge.devices.sysroot:sysroot",
    "armhf": "samespace.edge.devices.sysroot:sysroot",
    "amd64": "samespace.edge.devices.sysroot:sysroot",
    "arm64-system": "samespace.edge.devices.system:system_set",
    "browser": "samespace.edge.devices.browser.install:browser_set",
}


class Installable(Protocol):
    """Something that devices need and that is installed into the user's cache folder."""

    name: str
    #: One line for people: what it is and which devices need it.
    description: str

    def install(self) -> None:
        """Install or update it, with progress on stderr; nothing happens when it is there and good.

        Raises:
            ConfigError: it cannot be installed here; says why and what to do. Nothing is left that would be accepted later.
        """
        ...

    def check(self, *, thorough: bool = False) -> str | None:
        """What is wrong with it and what to do about it; None when it can be used.

        Args:
            thorough: read every file and hash it, and try it; else what takes a moment.
        """
        ...

    def remove(self) -> bool:
        """Remove it; whether there was anything."""
        ...

    def details(self) -> Mapping[str, str]:
        """What is installed (versions, size), for ``samespace devices list``; empty when nothing is."""
        ...


def load_install(name: str) -> Installable:
    """The set of that name.

    Raises:
        ConfigError: there is none; lists those there are.
    """
    target = INSTALLS.get(name)
    if target is None:
        raise ConfigError(f"nothing to install is called {name!r}; there is: {', '.join(INSTALLS)}")
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(name)
