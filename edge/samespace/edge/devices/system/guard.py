"""A program that starts another, and sees to it that it ends when the process that wanted it does: ``guard.py PID COMMAND...``.

QEMU itself would go on computing. It imports nothing of ours. The last telling line of what the command prints on standard
error (a kernel's console goes there) is printed at the end.
"""

from __future__ import annotations

import collections
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import BinaryIO

__all__ = ["main", "telling"]

_PR_SET_PDEATHSIG = 1
#: Before all others.
_TELLING = ("samespace:", "Kernel panic - not syncing")


def main(arguments: Sequence[str]) -> None:
    """Run the command with this process's streams; end as it does, or end it when ``PID`` is no longer the parent."""
    parent = int(arguments[0])
    libc = ctypes.CDLL(None, use_errno=True)

    def die_with_guard() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    # Single-threaded until here, so that the function may run between fork and exec.
    process = subprocess.Popen(arguments[1:], stderr=subprocess.PIPE, preexec_fn=die_with_guard)
    assert process.stderr is not None
    lines: collections.deque[str] = collections.deque(maxlen=60)
    reader = threading.Thread(target=_read, args=(process.stderr, lines), daemon=True)
    reader.start()
    while True:
        try:
            code = process.wait(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                process.kill()
    reader.join(timeout=5.0)
    print(telling(list(lines)), file=sys.stderr, flush=True)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def telling(lines: Sequence[str]) -> str:
    """The line that says most about an end."""
    found = [line.strip() for line in lines if line.strip()]
    best = [line for line in found if any(text in line for text in _TELLING)]
    return (best or found or [""])[0 if best else -1]


def _read(stream: BinaryIO, lines: collections.deque[str]) -> None:
    for line in stream:
        lines.append(line.decode(errors="replace"))


if __name__ == "__main__":
    main(sys.argv[1:])
