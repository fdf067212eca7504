"""Memory of a training process on a CPU."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_memory"]

# glibc's malloc.h: how large an allocation gets pages of its own, and how much free memory is given back at once.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_LARGEST = 2**30


def keep_memory() -> bool:
    """Let this process keep the memory of activations that it frees; True where the C library can be told so (glibc).

    Otherwise every step gives hundreds of megabytes back to the system and asks for them again, and each page comes back as a
    page fault: 1 to 10 % of a step. The largest size of the process stays what it was.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
