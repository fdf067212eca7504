"""The state of an interrupted run: one safetensors file, its few plain values as JSON in the header. No pickle.

One file, replaced in one rename: a kill at any moment leaves the old state or the new one. There is no random state in it, see
:mod:`samespace.cloud.training.seeds`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from samespace.cloud.training.optimiser import load_optimiser, optimiser_tensors
from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_write

__all__ = ["Progress", "pack", "restore_optimisers", "restore_weights", "unpack", "write"]

_HEADER_KEY = "samespace"


class Progress(BaseModel):
    """How far a run is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = 1
    recipe_sha256: str
    data_sha256: str
    stage: int = 0
    #: Steps done in that stage.
    step: int = 0
    log_bytes: int = 0
    #: Seconds of training so far, over all attempts.
    seconds: float = 0.0


def pack(progress: Progress, modules: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer]) -> bytes:
    """All tensors of the modules and of their optimisers, and the progress, as safetensors bytes."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}/weights/{key}": value for key, value in module.state_dict().items()}
        if name in optimisers:
            state = optimiser_tensors(optimisers[name], module)
            tensors |= {f"{name}/optimiser/{key}": value for key, value in state.items()}
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return safetensors.torch.save(plain, {_HEADER_KEY: progress.model_dump_json()})


def unpack(data: bytes, name: str) -> tuple[Progress, dict[str, Tensor]]:
    """What :func:`pack` made.

    Raises:
        ConfigError: the file is damaged or of another format; ``name`` says which.
    """
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        progress = Progress.model_validate_json(header["__metadata__"][_HEADER_KEY])
        return progress, safetensors.torch.load(data)
    except (struct.error, ValueError, KeyError, ValidationError, SafetensorError) as error:
        raise ConfigError(
            f"{name}: not a checkpoint that can be read ({type(error).__name__}); delete it, or train into another folder"
        ) from None


def restore_weights(tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module]) -> None:
    """Put the weights and buffers back into modules of the same recipe, in place."""
    for name, module in modules.items():
        module.load_state_dict(_below(tensors, f"{name}/weights/"))


def restore_optimisers(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer]
) -> None:
    """Put the state of the optimisers back, in place; those of which nothing was saved stay fresh."""
    for name, optimiser in optimisers.items():
        load_optimiser(optimiser, modules[name], _below(tensors, f"{name}/optimiser/"))


def write(path: Path, data: bytes) -> None:
    """Replace the checkpoint, atomically."""
    atomic_write(path, data)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
