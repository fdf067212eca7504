"""Core ML artifacts by Core ML itself: macOS only. Elsewhere ``coreml_reference`` evaluates the same package."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from samespace.sdk.errors import ConfigError, MissingExtraError, RuntimeFailure
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions

__all__ = ["CoremlRuntime"]


class CoremlRuntime(Runtime):
    """Runs an ``.mlpackage`` through coremltools; Core ML chooses the compute units.

    Core ML opens a folder, so the verified bytes are written to a private temporary folder that lives as long as the runtime.
    """

    name: ClassVar[str] = "coreml"
    format: ClassVar[str] = "coreml"
    packages: ClassVar[tuple[str, ...]] = ("coremltools",)

    def __init__(self, artifact: LoadedArtifact, options: RuntimeOptions | None = None) -> None:
        super().__init__(artifact, options)
        reason = self.unavailable()
        if reason is not None:
            raise ConfigError(reason)
        import coremltools

        self._folder = Path(tempfile.mkdtemp(prefix="samespace-coreml-"))
        package = self._folder / "model.mlpackage"
        try:
            for name, data in artifact.files.items():
                target = package / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            self._model = coremltools.models.MLModel(str(package))
        except Exception as error:
            self.close()
            raise RuntimeFailure(f"{artifact.spec.path}: Core ML refuses it: {error}") from error

    @classmethod
    def unavailable(cls) -> str | None:
        if sys.platform != "darwin":
            return "the runtime 'coreml' needs macOS; on this system use 'coreml_reference', which evaluates the same package"
        if importlib.util.find_spec("coremltools") is None:
            return str(MissingExtraError("coreml", "running an .mlpackage artifact"))
        return None

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        spec = self.artifact.spec
        try:
            answers = [self._model.predict({spec.input.name: Image.fromarray(image)})[spec.output] for image in images]
        except Exception as error:
            raise RuntimeFailure(f"{spec.path}: Core ML failed: {error}") from error
        return np.concatenate([np.asarray(answer, np.float32).reshape(1, -1) for answer in answers])

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
