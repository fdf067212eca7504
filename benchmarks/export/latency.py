"""How long one image takes, all artifacts and runtimes interleaved in one run, as ratios to one of them.

One thread, batch 1: what an app does. Times of a shared machine drift; what is measured side by side drifts alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.registry import open_runtime

__all__ = ["Latency", "interleaved"]

Key = tuple[str, str]
_WARM_UP = 5


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one image, and their ratio to the base's (below 1: faster), with its interval of 95 %."""

    milliseconds: float
    ratio: float
    low: float
    high: float


def interleaved(
    artifacts: Mapping[Key, LoadedArtifact], images: npt.NDArray[np.uint8], base: Key, rounds: int, seed: int = 0
) -> dict[Key, Latency]:
    """Time one image after the other.

    Args:
        artifacts: (artifact, runtime) -> what to open.
        images: ``(n, size, size, 3)`` uint8; round i takes image i.
        base: what the ratios are to.
        rounds: in each, every artifact runs once, in an order of its own.
        seed: of the orders and of the bootstrap over rounds.
    """
    generator = np.random.default_rng(seed)
    keys = list(artifacts)
    options = RuntimeOptions(threads=1, batch_size=1)
    times = np.empty((rounds, len(keys)))
    with ExitStack() as stack:
        opened: list[Runtime] = [stack.enter_context(open_runtime(artifacts[key], key[1], options)) for key in keys]
        for runtime in opened:
            for _ in range(_WARM_UP):
                runtime.run(images[:1])
        for index in range(rounds):
            image = images[index % len(images)][None]
            for place in generator.permutation(len(keys)):
                start = time.perf_counter()
                opened[place].run(image)
                times[index, place] = time.perf_counter() - start
    rows = generator.integers(0, rounds, (1000, rounds))
    medians = np.median(times[rows], axis=1)
    found = {}
    for place, key in enumerate(keys):
        ratios = medians[:, place] / medians[:, keys.index(base)]
        low, high = np.quantile(ratios, [0.025, 0.975])
        middle = np.median(times[:, place])
        found[key] = Latency(
            float(1000 * middle), float(middle / np.median(times[:, keys.index(base)])), float(low), float(high)
        )
    return found
