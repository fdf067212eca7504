"""The reference: the float32 torch model, from the definition of its preprocessing, not from the graph that is exported."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samespace.sdk.identity import ModelRecord
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions

__all__ = ["TorchRuntime", "embed"]


class TorchRuntime(Runtime):
    """Runs a torch model as if it were an artifact, so that all that takes a runtime takes the model itself.

    Args:
        model: float32 network, ``(n, 3, size, size)`` normalised -> ``(n, dim)``.
        record: what it is.
    """

    name: ClassVar[str] = "torch"
    format: ClassVar[str] = "torch"
    packages: ClassVar[tuple[str, ...]] = ("torch",)

    def __init__(self, model: nn.Module, record: ModelRecord, options: RuntimeOptions | None = None) -> None:
        # No artifact of a bundle: unvalidated, because a manifest never lists the format "torch".
        spec = Artifact.model_construct(
            path=f"{record.name} (torch)",
            format="torch",
            precision="fp32",
            artifact_id=record.weights_sha256,
            input=TensorSpec(name="image", dtype="uint8", dynamic_batch=True),
            output="embedding",
            recipe={},
            min_runtime="torch",
        )
        super().__init__(LoadedArtifact(spec, {}, record.preprocess.size, record.dim), options)
        self._model = model.eval()
        self._record = record

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return embed(self._model, self._record, images)


def embed(
    model: nn.Module,
    record: ModelRecord,
    tensors: npt.NDArray[np.generic],
    *,
    mean_std: bool = True,
    l2: bool = True,
    batch: int = 64,
) -> npt.NDArray[np.float32]:
    """Embed preprocessed images by the definition: ``normalise(model((x / 255 - mean) / std))``.

    Args:
        model: in evaluation mode.
        record: gives mean and std.
        tensors: ``(n, size, size, 3)`` RGB, 0-255.
        mean_std: False leaves mean and std out, a mistake that apps make.
        l2: False leaves the L2 norm out.
        batch: images at once.

    Returns:
        ``(n, dim)`` float32.
    """
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (record.preprocess.mean, record.preprocess.std))
    rows = []
    with torch.inference_mode():
        for start in range(0, len(tensors), batch):
            part = np.ascontiguousarray(tensors[start : start + batch].transpose(0, 3, 1, 2), dtype=np.float32)
            x = torch.from_numpy(part) / 255
            y = model((x - mean) / std if mean_std else x)
            rows.append((nn.functional.normalize(y, dim=1) if l2 else y).numpy())
    return np.concatenate(rows) if rows else np.empty((0, record.dim), np.float32)
