"""Engines in a process of their own, perhaps in another Python: a child that is asked over pipes.

What goes over the pipes is JSON and plain bytes (:mod:`samespace.sdk.runtimes.child_frames`), never a pickle. The child ends
with the object that started it, or with this process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from samespace.sdk.errors import ConfigError
from samespace.sdk.isolation import Child
from samespace.sdk.isolation_child import read_bytes, read_json, write_bytes, write_json

__all__ = ["ChildFailed", "ChildRefused", "OtherPython", "ServingChild"]

_FRAMES = Path(__file__).with_name("child_frames.py")
_ASK = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class ChildRefused(Exception):  # noqa: N818 - a refusal is an answer
    """The child answered that it cannot, with its reason; it can be asked again."""


class ChildFailed(Exception):  # noqa: N818 - as above
    """The child crashed, gave no answer in time, or one that makes no sense; it was ended."""


@dataclass(frozen=True)
class OtherPython:
    """The Python of an environment of its own.

    Attributes:
        variable: environment variable that names its executable.
        packages: distributions that it must have; the first is the engine.
        purpose: what does not work without, as messages call it.
        recipe: shell commands that make the environment in the folder ``DIR``.
        here: this Python will do where the variable is not set.
        unfit: versions of the packages -> why they do not work together; empty when they do.
    """

    variable: str
    packages: tuple[str, ...]
    purpose: str
    recipe: str
    here: bool = False
    unfit: Callable[[Mapping[str, str]], str] = lambda _: ""

    def command(self, script: Path) -> list[str]:
        """What starts a standalone script that serves by ``child_frames``.

        Raises:
            ConfigError: there is no such Python, or it lacks a package.
        """
        if missing := self.missing():
            raise ConfigError(missing)
        if chosen := os.environ.get(self.variable):
            # -I: nothing of our environment, neither our paths nor the user's packages.
            return [_absolute(chosen), "-I", str(script), str(_FRAMES)]
        # -P: not what lies beside the script, of which some is named like packages.
        return [sys.executable, "-P", str(script), str(_FRAMES)]

    def missing(self) -> str | None:
        """What keeps it from working and what to do about it; None when it works."""
        chosen = os.environ.get(self.variable)
        if not chosen and not self.here:
            return self._mend(f"{self.variable} names no Python")
        name, found = chosen or sys.executable, self._found()
        if isinstance(found, str):
            return self._mend(f"{self.variable} = {name} is no Python that can be started: {found}")
        lacking = [package for package in self.packages if package not in found]
        why = f"has no {' and no '.join(lacking)}" if lacking else self.unfit(found)
        return self._mend(f"{name} {why}") if why else None

    def version(self) -> str | None:
        """Of the engine; None where there is none."""
        found = self._found()
        return found.get(self.packages[0]) if isinstance(found, Mapping) else None

    def _found(self) -> dict[str, str] | str:
        """Versions of the packages, or why there is nobody to ask."""
        if chosen := os.environ.get(self.variable):
            return _versions(_absolute(chosen), self.packages)
        return _versions_here(self.packages) if self.here else {}

    def _mend(self, why: str) -> str:
        return (
            f"{self.purpose} needs an environment of its own: {why}. Make one with {self.recipe}, and set "
            f"{self.variable}=DIR/bin/python"
        )


class ServingChild:
    """A child process that answers questions.

    Args:
        command: starts a program that serves by ``child_frames``; :meth:`OtherPython.command` makes one.
        ours: the program is our own code: it gets this process's environment, and a session of its own, so that whatever it
            starts ends with it.

    Raises:
        ConfigError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], *, ours: bool = False) -> None:
        self._lock = threading.Lock()
        try:
            # Else without a session of its own: inside a limited child process it is to end with that.
            self._child = Child(command, session=ours, inherit=ours)
        except OSError as error:
            raise ConfigError(f"{command[0]} cannot be started: {error}") from None
        self._finalizer = weakref.finalize(self, self._child.kill)

    def ask(
        self, question: Mapping[str, Any], parts: Sequence[bytes | memoryview] = (), *, seconds: float, most: int = 1 << 31
    ) -> tuple[dict[str, Any], list[bytes]]:
        """Ask one question.

        Args:
            question: plain values.
            parts: byte strings that go with it.
            seconds: for the answer to come.
            most: bytes that the answer's byte strings may have in all.

        Returns:
            The answer and its byte strings.

        Raises:
            ChildRefused: with the child's reason.
            ChildFailed: it crashed or gave no sensible answer in time, or had ended before.
        """

        def talk() -> tuple[dict[str, Any], list[bytes]]:
            write_json(self._child.to_child, {**question, "bytes": [len(part) for part in parts]})
            for part in parts:
                write_bytes(self._child.to_child, part)
            self._child.to_child.flush()
            answer = read_json(self._child.from_child)
            sizes = answer.get("bytes") if isinstance(answer, dict) else None
            if not isinstance(sizes, list) or not all(isinstance(size, int) and 0 <= size <= most for size in sizes):
                raise ValueError("an answer that is not of the protocol, or too long")
            if sum(sizes) > most:
                raise ValueError(f"an answer of {sum(sizes)} bytes")
            return answer, [read_bytes(self._child.from_child, size) for size in sizes]

        with self._lock:
            if not self._finalizer.alive:
                raise ChildFailed("its process has ended; open it again")
            try:
                answer, found = self._child.within(seconds, talk)
            except TimeoutError:
                self.close()
                raise ChildFailed(f"no answer within {seconds:g} s") from None
            except ValueError as error:
                self.close()
                raise ChildFailed(str(error)) from None
            except (OSError, EOFError):
                end = self._child.describe_end()
                self.close()
                raise ChildFailed(f"it crashed ({end})") from None
            except BaseException:
                # Interrupted in the middle of an answer: what would be read next belongs to this question.
                self.close()
                raise
        if "error" in answer:
            # The text may be an artifact's own: nothing that a terminal obeys.
            raise ChildRefused("".join(letter if letter.isprintable() else " " for letter in str(answer["error"])[:1000]))
        return answer, found

    def close(self) -> None:
        """End the process; it cannot be asked afterwards."""
        self._finalizer()


def _absolute(python: str) -> str:
    # The child is started in a folder of its own. Not resolved: a venv's python is a link that must be called by its own name.
    return str(Path(shutil.which(python) or python).absolute())


@functools.lru_cache(maxsize=8)
def _versions(python: str, packages: tuple[str, ...]) -> dict[str, str] | str:
    """Versions of those packages that an environment has, or why it cannot be asked; asked once, by starting its Python."""
    try:
        command = [python, "-I", "-c", _ASK, *packages]
        return json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return str(error)


def _versions_here(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
