"""Randomness without hidden state: every random number of a run follows from the recipe's seed and a name for its purpose.

Nothing about random generators needs to be saved, because step n draws the same numbers whether or not the process was killed
before it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive", "generator", "seeded"]


def derive(seed: int, *purpose: str | int) -> int:
    """A seed in ``[0, 2**63)`` for one purpose, e.g. ``derive(seed, "augment", stage, step)``; stable for ever."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(device: torch.device, seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh torch generator for one purpose."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed the global generators (torch, NumPy, random) for one purpose; on the CPU they are as before when the block ends.

    For code that we do not write: initialisers, dropout, stochastic depth.
    """
    number = derive(seed, *purpose)
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
