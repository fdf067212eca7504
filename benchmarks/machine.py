"""What a figure was measured on."""

import os
import platform
from pathlib import Path

__all__ = ["describe"]


def describe() -> str:
    """Processor, cores, operating system and Python, in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
        widest = next((flag for flag in ("avx512_vnni", "avx512f", "avx2") if flag in flags), "")
        model = " ".join(filter(None, [names[0] if names else model, widest]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
