"""The artifact on this machine, where it runs: what it gives for right and for mistaken tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.diagnosis.faults import Recipe, faulty_tensors, faulty_values
from samespace.sdk.check.diagnosis.hypotheses import unit_rows
from samespace.sdk.errors import SamespaceError
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import Runtime, RuntimeOptions
from samespace.sdk.runtimes.registry import open_runtime, runtimes_for

__all__ = ["LiveArtifact"]


class LiveArtifact:
    """Runs one artifact of a bundle on the bundle's probes; answers None where it cannot.

    Args:
        bundle: a bundle that nobody trusted signed has its artifact run in a limited child process, as always.
        artifact: its name.
        probes: of the bundle.
    """

    def __init__(self, bundle: Bundle, artifact: str, probes: ProbeSet) -> None:
        self._bundle, self._artifact, self._probes = bundle, artifact, probes
        self._runtimes: dict[bool, Runtime | None] = {}
        self._right: dict[bool, npt.NDArray[np.float32] | None] = {}

    def right(self, *, optimise: bool = True) -> npt.NDArray[np.float32] | None:
        """``(n, d)`` float32 unit-norm for the golden tensors; ``optimise=False`` without graph optimisations."""
        if optimise not in self._right:
            self._right[optimise] = self._run(self._probes.golden, optimise)
        return self._right[optimise]

    def mistaken(self, faults: Sequence[str], count: int) -> npt.NDArray[np.float32] | None:
        """``(count, d)`` for the first probes with these mistakes; None for one that bytes cannot show."""
        recipe = Recipe.of(*faults)
        preprocess = self._bundle.manifest.model.preprocess
        tensors = np.stack([faulty_tensors(preprocess, image, [recipe])[0] for image in self._probes.images[:count]])
        values = faulty_values(preprocess, tensors, recipe.values)
        if values.min() < -0.5 or values.max() > 255.5 or recipe.values == "range_01":
            return None
        return self._run(np.rint(values).clip(0, 255).astype(np.uint8), True)

    def close(self) -> None:
        """Give back the runtimes."""
        for runtime in self._runtimes.values():
            if runtime is not None:
                runtime.close()

    def _run(self, tensors: npt.NDArray[np.uint8], optimise: bool) -> npt.NDArray[np.float32] | None:
        try:
            runtime = self._opened(optimise)
            rows = None if runtime is None else runtime.run(tensors)
        except SamespaceError:
            # Not to run here says nothing about the device.
            self._runtimes[optimise] = None
            return None
        if rows is None or not np.isfinite(rows).all() or not np.abs(rows).max(initial=0) < 1e18:
            return None
        return unit_rows(rows)

    def _opened(self, optimise: bool) -> Runtime | None:
        if optimise not in self._runtimes:
            loaded = self._bundle.artifact(self._artifact)
            name = next(iter(runtimes_for(loaded.spec.format)), None)
            options = RuntimeOptions(optimise=optimise)
            self._runtimes[optimise] = None
            if name is not None and self._bundle.trusted:
                self._runtimes[optimise] = open_runtime(loaded, name, options)
            elif name is not None:
                from samespace.sdk.isolation import IsolatedRuntime

                self._runtimes[optimise] = IsolatedRuntime(loaded, name, options)
        return self._runtimes[optimise]
