"""The guard that ends an emulator with the check: it runs here, with other commands in the place of QEMU."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from samespace.edge.devices.system import guard as guard_module
from samespace.edge.devices.system.guard import telling

GUARD = Path(guard_module.__file__)


def run_guard(*command: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    guarded = [sys.executable, "-I", str(GUARD), str(os.getpid()), *command]
    return subprocess.run(guarded, input=text, capture_output=True, text=True, timeout=60)


def test_the_guard_passes_streams_and_ends_as_its_command_ends() -> None:
    assert run_guard("cat", text="frames").stdout == "frames"
    result = run_guard("sh", "-c", "echo first >&2; echo 'samespace: no folder bundle' >&2; echo Power down >&2; exit 3")
    assert (result.returncode, result.stderr) == (3, "samespace: no folder bundle\n")
    assert run_guard("sh", "-c", "kill -SEGV $$").returncode == -signal.SIGSEGV
    assert telling(["a\n", "b\r\n", "\n"]) == "b"
    assert telling([]) == ""


@pytest.mark.parametrize("victim", ["guard", "parent"])
def test_nothing_is_left_when_the_guard_or_its_parent_is_killed(victim: str, tmp_path: Path) -> None:
    # A parent that starts the guard, which starts a command that reads nothing and never ends; it says its number.
    script = (
        "import os, subprocess, sys\n"
        "inner = 'import os, signal; print(os.getpid(), os.getppid(), flush=True); signal.pause()'\n"
        f"guarded = [sys.executable, '-I', {str(GUARD)!r}, str(os.getpid()), sys.executable, '-c', inner]\n"
        "subprocess.run(guarded, stdin=subprocess.DEVNULL)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        command, guard = map(int, parent.stdout.readline().split())
        handle = os.pidfd_open(command)
        os.kill({"guard": guard, "parent": parent.pid}[victim], signal.SIGKILL)
        try:
            assert select.select([handle], [], [], 30)[0]
        finally:
            os.close(handle)
            with contextlib.suppress(ProcessLookupError):
                parent.kill()
