"""Starting the programs that build a sysroot, each with a time-out and with its error in one line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from samespace.sdk.errors import ConfigError

__all__ = ["run"]


def run(
    command: Sequence[str], what: str, *, seconds: float, folder: Path | None = None, variables: Mapping[str, str] | None = None
) -> str:
    """Run a program to its end; when it takes too long, or this process is interrupted, it ends with all that it started.

    Args:
        command: program and arguments.
        what: what it is for, as messages call it.
        seconds: wall-clock time that it may take.
        folder: to run in.
        variables: of the environment, beside this process's own.

    Returns:
        What it printed on standard output.

    Raises:
        ConfigError: there is no such program, it failed, or it took too long.
    """
    environment = {**os.environ, **(variables or {}), "LC_ALL": "C.UTF-8"}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise ConfigError(f"{what} needs the program {command[0]!r}, which is not here; install it first") from None
    try:
        printed, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{what} took longer than {seconds:g} s and was ended; is the network up? Try again") from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        lines = [line.strip() for line in errors.splitlines() if line.strip() and "WARNING" not in line]
        wrong = [line for line in lines if line.startswith(("E:", "ERROR", "dpkg-deb: error", "tar:"))] or lines[-2:]
        full = any("No space left" in line or "Disk quota" in line for line in lines)
        mend = "make room there, or set SAMESPACE_CACHE_DIR to a folder with more" if full else "try again"
        raise ConfigError(
            f"{what} failed ({command[0]}: {'; '.join(wrong)[:500] or f'exit code {process.returncode}'}); {mend}"
        )
    return printed
