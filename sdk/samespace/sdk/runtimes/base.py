"""What every runtime is: open an artifact, run a batch, close. A new runtime writes ``_infer`` (and ``__init__``) only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.manifest import Artifact

__all__ = ["LoadedArtifact", "Runtime", "RuntimeOptions"]


@dataclass(frozen=True)
class RuntimeOptions:
    """How to run, the same for all runtimes; what a runtime does not know it ignores.

    Attributes:
        threads: intra-op threads; 0 means that the runtime chooses.
        batch_size: images per call, where the format has a dynamic batch.
        providers: onnxruntime's execution providers, best first; empty means the CPU.
        optimise: False runs the graph as it was written, without the runtime's graph optimisations.
    """

    threads: int = 0
    batch_size: int = 32
    providers: tuple[str, ...] = ()
    optimise: bool = True


@dataclass(frozen=True)
class LoadedArtifact:
    """An artifact whose bytes were verified: the bytes that were hashed are the bytes that are loaded.

    Attributes:
        spec: the artifact's entry in the manifest.
        files: relative path below the artifact -> bytes; a single-file artifact has the one key ``""``.
        size: edge of the square input in pixels.
        dim: dimension of the embedding.
    """

    spec: Artifact
    files: Mapping[str, bytes]
    size: int
    dim: int

    @property
    def single_file(self) -> bytes:
        """The bytes of an artifact that is one file."""
        return self.files[""]


class Runtime(ABC):
    """Runs one artifact. Subclasses live one to a file in this folder and are named in ``registry.py``."""

    #: Name on the command line and in reports.
    name: ClassVar[str]
    #: The artifact format it runs.
    format: ClassVar[str]
    #: Distributions that bring the engine, best first; the version of the first installed one goes into reports.
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, artifact: LoadedArtifact, options: RuntimeOptions | None = None) -> None:
        self.artifact = artifact
        self.options = options or RuntimeOptions()

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this runtime cannot work on this machine and what to do about it; ``None`` when it can. Imports nothing heavy."""
        return None

    @classmethod
    def version(cls) -> str:
        """Name and version of the engine, e.g. ``"onnxruntime 1.29.0"``; ``"unknown"`` when no package is installed."""
        for package in cls.packages:
            try:
                return f"{package} {version(package)}"
            except PackageNotFoundError:
                continue
        return "unknown"

    def run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed preprocessed images.

        Args:
            images: ``(n, size, size, 3)`` uint8 RGB; n may be 0.

        Returns:
            ``(n, dim)`` float32, as the artifact gives it (the Embedder judges norms and NaN).

        Raises:
            RuntimeFailure: wrong input shape or dtype, or an output that has not the shape ``(n, dim)``.
        """
        size, dim = self.artifact.size, self.artifact.dim
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise RuntimeFailure(
                f"{self.name}: images must be uint8 of shape (n, {size}, {size}, 3); got {images.dtype} {images.shape}"
            )
        if not len(images):
            return np.empty((0, dim), np.float32)
        step = max(1, self.options.batch_size) if self.artifact.spec.input.dynamic_batch else 1
        parts = [self._checked(images[start : start + step]) for start in range(0, len(images), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _checked(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        output = self._infer(images)
        expected = (len(images), self.artifact.dim)
        if output.shape != expected:
            path = self.artifact.spec.path
            raise RuntimeFailure(f"{self.name}: {path} answered with shape {output.shape}, expected {expected}")
        return output

    @abstractmethod
    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Run one batch that was already validated."""

    def close(self) -> None:  # noqa: B027 - most runtimes have nothing to give back
        """Give back what the runtime holds (temporary files, native handles)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
