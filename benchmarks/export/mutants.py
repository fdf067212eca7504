"""Damaged artifacts, each parsed in a limited child process: does the parent survive, and what does it get to see?

A bundle's digests keep damage out; this is what happens where somebody signs a broken or hostile artifact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import SamespaceError
from samespace.sdk.isolation import IsolatedRuntime, Limits
from samespace.sdk.metrics.arrays import NORM_TOLERANCE
from samespace.sdk.runtimes.base import LoadedArtifact, RuntimeOptions
from samespace.sdk.runtimes.registry import open_runtime

__all__ = ["DAMAGES", "OURS", "mutants", "outcome", "survey"]

DAMAGES = ("bits", "bits at the start", "cut", "spliced", "zeroed", "swapped")
#: What the parent may see: an error of ours, whatever became of the child, or embeddings.
OURS = ("refused", "child crashed", "child silent", "no embedding", "embedding")

#: These work in a child process of their own whoever opens them.
_IN_A_CHILD = ("executorch",)
_LIMITS = Limits(cpu_seconds=120, open_seconds=180, run_seconds=120)


def mutants(files: Mapping[str, bytes], count: int, seed: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """``count`` damaged copies of an artifact, each with the name of its damage; one file of it is damaged.

    Args:
        files: path below the artifact -> bytes.
        count: how many.
        seed: the same seed gives the same mutants.
    """
    for index in range(count):
        generator = np.random.default_rng([seed, index])
        damage = DAMAGES[index % len(DAMAGES)]
        path = sorted(files)[generator.integers(len(files))]
        yield damage, {**files, path: _damaged(files[path], damage, generator)}


def _damaged(data: bytes, damage: str, generator: np.random.Generator) -> bytes:
    size = len(data)
    array = np.frombuffer(data, np.uint8).copy()
    if damage.startswith("bits"):
        # The structure is at the start of most formats; weights make up the rest, and any weight is a valid one.
        reach = min(size, 4096) if damage == "bits at the start" else size
        places = generator.integers(reach, size=generator.integers(1, 33))
        np.bitwise_xor.at(array, places, (1 << generator.integers(8, size=len(places))).astype(np.uint8))
        return array.tobytes()
    if damage == "cut":
        return data[: generator.integers(size)]
    length = int(generator.integers(1, max(2, min(size // 2, 65536))))
    here, there = (int(place) for place in generator.integers(max(1, size - length), size=2))
    if damage == "spliced":
        # Everything behind moves.
        return data[:here] + data[there : there + length] + data[here:]
    if damage == "zeroed":
        array[here : here + length] = 0
        return array.tobytes()
    array[here : here + length] = array[there : there + length].copy()
    return array.tobytes()


def outcome(artifact: LoadedArtifact, runtime: str, images: npt.NDArray[np.uint8], limits: Limits = _LIMITS) -> tuple[str, str]:
    """One of ``OURS``, and the message; what else is raised passes through."""
    options = RuntimeOptions(threads=1, batch_size=len(images))
    try:
        own = runtime in _IN_A_CHILD
        with open_runtime(artifact, runtime, options) if own else IsolatedRuntime(artifact, runtime, options, limits) as opened:
            rows = opened.run(images).astype(np.float64)
    except SamespaceError as error:
        message = str(error)
        if "its child process ended" in message or "it crashed (" in message:
            return "child crashed", message
        if "no answer from its child process" in message or "no answer within" in message:
            return "child silent", message
        return "refused", message
    with np.errstate(all="ignore"):
        off = ~(np.abs(np.linalg.norm(rows, axis=1) - 1) <= NORM_TOLERANCE)
    # The Embedder refuses these.
    return ("no embedding", f"norm of image {np.flatnonzero(off)[0]}") if off.any() else ("embedding", "")


def survey(
    artifact: LoadedArtifact, runtime: str, images: npt.NDArray[np.uint8], count: int, seed: int = 0, workers: int = 2
) -> dict[str, int]:
    """How often each outcome came; ``"escaped"`` counts errors that are not ours."""

    def one(mutant: tuple[str, dict[str, bytes]]) -> str:
        try:
            return outcome(replace(artifact, files=mutant[1]), runtime, images)[0]
        except Exception as error:
            print(f"escaped: {artifact.spec.name}, {mutant[0]}: {type(error).__name__}: {error}", flush=True)
            return "escaped"

    with ThreadPoolExecutor(max_workers=workers) as pool:
        counts = Counter(pool.map(one, mutants(artifact.files, count, seed)))
    return {name: counts[name] for name in (*OURS, "escaped")}
