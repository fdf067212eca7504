"""Memory that one inference takes, measured: a fresh process that opens the artifact and embeds one image.

Run as a program it prints ``{"bytes": INT}``: the most memory that the process had (``VmHWM``) less what it had before it
opened the artifact, with the runtime imported: weights, what the runtime makes of them, and activations. One thread, one image.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

__all__ = ["measured_memory"]

_SECONDS = 300


def measured_memory(bundle: Path, artifact: str, runtime: str) -> int:
    """Bytes that opening an artifact and embedding one image add to a process.

    Args:
        bundle: path of a bundle that the user trusts.
        artifact: path of the artifact in it.
        runtime: name of one that is installed.

    Raises:
        ValueError: the process failed, or the system does not say how much memory a process has.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise ValueError("this system does not say how much memory a process had at most (Linux does)")
    command = [sys.executable, "-P", "-m", __name__, str(bundle), artifact, runtime]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it did not end within {_SECONDS} s") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ValueError(last or f"the process ended with {done.returncode}")
    return int(json.loads(done.stdout.rpartition("\n{")[2].join(("{", "")) if "\n{" in done.stdout else done.stdout)["bytes"])


def _status(name: str) -> int:
    """Bytes, of a line of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def _main(path: str, artifact: str, runtime: str) -> None:
    from samespace.sdk.bundle import Bundle
    from samespace.sdk.probes import ProbeSet
    from samespace.sdk.runtimes.base import RuntimeOptions
    from samespace.sdk.runtimes.registry import open_runtime, runtime_class

    bundle = Bundle.open(path)
    image = ProbeSet.from_bundle(bundle).golden[:1]
    loaded = bundle.artifact(artifact)
    runtime_class(runtime).version()  # imports it
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    with open_runtime(loaded, runtime, RuntimeOptions(threads=1, batch_size=1)) as opened:
        opened.run(image)
    print(json.dumps({"bytes": max(0, _status("VmHWM") - before)}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
