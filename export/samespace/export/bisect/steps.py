"""What a format's tracer gives: each step of an artifact on its way from the image to the embedding, with what it computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from samespace.sdk.runtimes.base import LoadedArtifact

__all__ = ["Step", "Trace", "Tracer"]


@dataclass(frozen=True, eq=False)
class Step:
    """One operation that was looked at.

    Attributes:
        operator: as the format calls it, e.g. ``"Conv"``, ``"CONV_2D"``, ``"conv"``.
        name: of the operation, or of its result where operations have none; what a graph viewer shows.
        index: place among all operations of the file, counted from 0.
        result: name of the tensor that it computes.
        value: ``(n, ...)`` float32, that tensor for n images; quantised values are dequantised.
    """

    operator: str
    name: str
    index: int
    result: str
    value: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Trace:
    """An artifact's steps in order of execution.

    Attributes:
        steps: those whose results can be seen, the last one gives the embedding.
        parents: result -> the results that it is computed from, also of operations that cannot be seen.
    """

    steps: tuple[Step, ...]
    parents: Mapping[str, tuple[str, ...]]

    @property
    def embedding(self) -> npt.NDArray[np.float32]:
        """``(n, dim)`` float32."""
        return self.steps[-1].value


class Tracer(Protocol):
    """Runs an artifact and keeps what its operations computed; one function a format, see ``TRACERS``."""

    def __call__(self, artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], *, runtime: str, optimise: bool) -> Trace:
        """Trace.

        Args:
            artifact: the file as it is; the tracer makes more of its tensors outputs.
            tensors: ``(n, size, size, 3)`` uint8, preprocessed images.
            runtime: name in the registry of runtimes, of those that run the format.
            optimise: False runs the graph as it was written: no graph optimisations, no delegates.

        Raises:
            RuntimeFailure: the artifact does not run.
            ConfigError: this runtime cannot be looked into.
        """
        ...
