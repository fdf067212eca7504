"""A map from one model's embeddings to another's, fitted after training: an artifact like any other, and NumPy is all it needs.

``y = x W + b``, plus ``h(x)`` where it has hidden layers (ReLU), brought to unit norm. A file is safetensors with its record as
metadata: format version, both models' ids, how it was fitted. What it maps may be compared with the target model's vectors only
as far as a report says so (:mod:`samespace.cloud.upgrades`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samespace.sdk.errors import ConfigError, EmbeddingError, FormatVersionError, IntegrityError, SpaceMismatchError
from samespace.sdk.files import atomic_write
from samespace.sdk.identity import canonical_json, digest

__all__ = ["ADAPTER_VERSION", "Adapter", "AdapterRecord", "read_adapter", "write_adapter"]

#: Version of the files that this samespace writes; it reads this one and all older ones.
ADAPTER_VERSION = 1
_KEY = "samespace_adapter"


class AdapterRecord(BaseModel):
    """What an adapter maps, and how it was fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = ADAPTER_VERSION
    method: str = Field(description="procrustes, ridge, low-rank, network, backward, forward")
    source_model_id: str = Field(pattern="^m-[0-9a-f]{32}$", description="whose embeddings go in")
    target_model_id: str = Field(pattern="^m-[0-9a-f]{32}$", description="whose embeddings come out, nearly")
    pairs: int = Field(ge=1, description="items that it was fitted to")
    side_dim: int = Field(default=0, ge=0, description="dimensions of the side information that it needs beside each embedding")
    settings: dict[str, float | int | str | bool] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory.

    Attributes:
        record: what it maps.
        tensors: float32. ``linear.weight`` (d, d'), and perhaps ``linear.bias`` (d'); with hidden layers also
            ``hidden.I.weight`` (a, b) and ``hidden.I.bias`` (b), the first of which takes the side information, too, and
            ``out.weight`` (b, d'), ``out.bias``; with an uncertainty head ``sigma.weight`` (b, 1) and ``sigma.bias`` (1).

    Raises:
        IntegrityError: tensors that are missing, of shapes that do not fit, or not finite.
    """

    record: AdapterRecord
    tensors: Mapping[str, npt.NDArray[np.float32]]

    def __post_init__(self) -> None:
        widths = [self.source_dim + self.record.side_dim]
        expected: dict[str, tuple[int, ...]] = {"linear.weight": (self.source_dim, self.target_dim)}
        if "linear.bias" in self.tensors:
            expected["linear.bias"] = (self.target_dim,)
        for place in range(self.hidden_layers):
            widths.append(self.tensors[f"hidden.{place}.weight"].shape[-1])
            expected |= {f"hidden.{place}.weight": (widths[-2], widths[-1]), f"hidden.{place}.bias": (widths[-1],)}
        if self.hidden_layers:
            expected |= {"out.weight": (widths[-1], self.target_dim), "out.bias": (self.target_dim,)}
        if self.is_uncertain:
            expected |= {"sigma.weight": (widths[-1], 1), "sigma.bias": (1,)}
        found = {name: tensor.shape for name, tensor in self.tensors.items()}
        if found != expected:
            raise IntegrityError(f"the adapter's tensors do not fit together: expected {expected}, found {found}; fit it again")
        if wrong := [name for name, tensor in self.tensors.items() if not np.isfinite(tensor).all()]:
            raise IntegrityError(f"the adapter's tensor {wrong[0]} holds NaN or infinite values; fit it again")

    @property
    def source_dim(self) -> int:
        return self._linear.shape[0]

    @property
    def target_dim(self) -> int:
        return self._linear.shape[1]

    @property
    def hidden_layers(self) -> int:
        return sum(name.startswith("hidden.") and name.endswith(".weight") for name in self.tensors)

    @property
    def is_uncertain(self) -> bool:
        """Whether it tells, of each item, how far it may be wrong."""
        return "sigma.weight" in self.tensors

    @property
    def adapter_id(self) -> str:
        """``a-`` and 32 hexadecimal digits of the hash of record and tensors."""
        parts = {name: digest(np.ascontiguousarray(tensor).tobytes()) for name, tensor in self.tensors.items()}
        return "a-" + digest(canonical_json([self.record.model_dump(mode="json"), parts]))[:32]

    def apply(self, rows: npt.NDArray[np.floating], side: npt.NDArray[np.floating] | None = None) -> npt.NDArray[np.float32]:
        """Map embeddings.

        Args:
            rows: ``(n, d)`` unit-norm, by the source model.
            side: ``(n, side_dim)`` side information, where the adapter needs it.

        Returns:
            ``(n, d')`` float32 unit-norm.

        Raises:
            SpaceMismatchError: rows or side information of another width.
            EmbeddingError: NaN or infinite values, or a row that is mapped to zero.
        """
        x, hidden = self._inside(rows, side)
        mapped = x @ self._linear.astype(np.float64) + self.tensors.get("linear.bias", np.float32(0))
        if self.hidden_layers:
            mapped = mapped + hidden @ self.tensors["out.weight"] + self.tensors["out.bias"]
        norms = np.linalg.norm(mapped, axis=1, keepdims=True)
        if len(zero := np.flatnonzero(~(norms[:, 0] > 1e-12))):
            raise EmbeddingError(f"row {zero[0]} is mapped to zero, which is no embedding; fit the adapter again")
        return (mapped / norms).astype(np.float32)

    def uncertainty(
        self, rows: npt.NDArray[np.floating], side: npt.NDArray[np.floating] | None = None
    ) -> npt.NDArray[np.float64]:
        """``(n,)`` float64 > 0: sigma of each mapped row (FastFill, Jaeckle et al., ICLR 2023); high where it may be wrong.

        Raises:
            ConfigError: the adapter has no uncertainty head. Else as :meth:`apply`.
        """
        if not self.is_uncertain:
            raise ConfigError("this adapter does not tell how sure it is; fit one with --method network")
        _, hidden = self._inside(rows, side)
        logs = (hidden @ self.tensors["sigma.weight"] + self.tensors["sigma.bias"])[:, 0]
        return np.exp(np.clip(logs, -30, 30) / 2)

    @property
    def _linear(self) -> npt.NDArray[np.float32]:
        weight = self.tensors.get("linear.weight")
        if weight is None or weight.ndim != 2:
            raise IntegrityError("the adapter has no matrix 'linear.weight'; fit it again")
        return weight

    def _inside(
        self, rows: npt.NDArray[np.floating], side: npt.NDArray[np.floating] | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The rows, and what the last hidden layer gives for them."""
        x = np.asarray(rows, np.float64)
        if x.ndim != 2 or x.shape[1] != self.source_dim:
            raise SpaceMismatchError(f"this adapter maps embeddings of {self.source_dim} dimensions, not {x.shape}")
        inputs = x
        if self.record.side_dim:
            if side is None or side.shape != (len(x), self.record.side_dim):
                found = "none" if side is None else str(side.shape)
                raise SpaceMismatchError(
                    f"this adapter needs side information of {self.record.side_dim} dimensions for each row; got {found}"
                )
            inputs = np.concatenate([x, np.asarray(side, np.float64)], axis=1)
        if not np.isfinite(inputs).all():
            raise EmbeddingError("the embeddings hold NaN or infinite values; embed the items again")
        for place in range(self.hidden_layers):
            inputs = np.maximum(inputs @ self.tensors[f"hidden.{place}.weight"] + self.tensors[f"hidden.{place}.bias"], 0)
        return x, inputs


def write_adapter(path: Path, adapter: Adapter) -> None:
    """Write it, atomically; the same adapter gives the same bytes."""
    tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in sorted(adapter.tensors.items())}
    record = json.dumps(adapter.record.model_dump(mode="json"), sort_keys=True)
    atomic_write(path, safetensors.numpy.save(tensors, metadata={_KEY: record}))


def read_adapter(path: Path) -> Adapter:
    """Read what :func:`write_adapter` wrote.

    Raises:
        ConfigError: no such file, or no adapter. IntegrityError: cut off, or tensors that do not fit together.
        FormatVersionError: a newer samespace wrote it.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such adapter; make one with 'samespace adapters fit'")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            record = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (safetensors.SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: cut off or damaged: {error}") from None
    if record is None:
        raise ConfigError(f"{path}: holds tensors, but no adapter; give a file that 'samespace adapters fit' wrote")
    try:
        content = json.loads(record)
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > ADAPTER_VERSION:
            raise FormatVersionError(f"{path}: is of version {version}; install a newer samespace to read it")
        return Adapter(AdapterRecord.model_validate(content), tensors)
    except (ValidationError, ValueError) as error:
        raise IntegrityError(f"{path}: its record cannot be read: {error}") from None
