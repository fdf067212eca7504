"""An adaptation as a file: a signed change of released weights; several are added, and each can be taken out.

The weights of a model with adaptations are always made anew from the released ones and the whole set, in one order: so taking
one out gives, bit for bit, what there would be had it never been put in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samespace.sdk.errors import ConfigError, FormatVersionError, IntegrityError, SignatureError
from samespace.sdk.files import atomic_write
from samespace.sdk.identity import canonical_json, digest
from samespace.sdk.signing import PublicKey, SigningKey, TrustStore

__all__ = [
    "Adaptation",
    "AdaptationRecord",
    "composed",
    "low_rank",
    "new_adaptation",
    "read_adaptation",
    "total_change",
    "write_adaptation",
]

ADAPTATION_VERSION = 1
_ENVELOPE = "samespace_adaptation"
#: Goes before the record into what is signed: no signature of ours over something else passes as this.
_PURPOSE = b"samespace adaptation\n"

Tensors = Mapping[str, npt.NDArray[np.float32]]


class AdaptationRecord(BaseModel):
    """What an adaptation changes, and how it was fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = ADAPTATION_VERSION
    base_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the released weights that it changes")
    tensors_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the change itself")
    images: int = Field(ge=1, description="that it was fitted to")
    anchors: int = Field(ge=0, description="pictures whose embeddings were to stay")
    drift: float = Field(ge=0, description="largest first-order change of an anchor's embedding")
    settings: dict[str, float | int | str | bool] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Adaptation:
    """An adaptation in memory.

    Attributes:
        tensors: parameter -> float32 change, of the parameter's shape; or ``PARAMETER:left`` (m, r) and ``PARAMETER:right``
            (r, n), whose product it is, with all but the first dimension flattened.

    Raises:
        IntegrityError: a change that is not finite, or not the one that the record is about.
    """

    record: AdaptationRecord
    tensors: Tensors

    def __post_init__(self) -> None:
        if broken := [name for name, tensor in self.tensors.items() if not np.isfinite(tensor).all()]:
            raise IntegrityError(f"the change of {broken[0]} holds NaN or infinite values; fit it again with a larger penalty")
        if _sha256(self.tensors) != self.record.tensors_sha256:
            raise IntegrityError("the tensors are not those that the adaptation's record is about")

    @property
    def adaptation_id(self) -> str:
        """Changes with anything in it."""
        return f"a-{digest(_canonical(self.record))[:32]}"


def new_adaptation(
    tensors: Tensors, *, base_sha256: str, images: int, anchors: int, drift: float, **settings: float
) -> Adaptation:
    """An adaptation of the weights of that digest."""
    record = AdaptationRecord(
        base_sha256=base_sha256,
        tensors_sha256=_sha256(tensors),
        images=images,
        anchors=anchors,
        drift=drift,
        settings=settings,  # type: ignore[arg-type]
    )
    return Adaptation(record, tensors)


def low_rank(tensors: Tensors, rank: int) -> dict[str, npt.NDArray[np.float32]]:
    """Each matrix (of a convolution, with inputs and kernel flattened) as its best product of that rank, where that is smaller.

    Raises:
        ConfigError: a rank below 1.
    """
    if rank < 1:
        raise ConfigError(f"rank must be 1 or more, got {rank}")
    found = {}
    for name, tensor in tensors.items():
        matrix = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
        if rank * sum(matrix.shape) >= matrix.size:
            found[name] = tensor
            continue
        left, sizes, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        found[f"{name}:left"] = (left[:, :rank] * sizes[:rank]).astype(np.float32)
        found[f"{name}:right"] = np.ascontiguousarray(right[:rank], np.float32)
    return found


def total_change(
    shapes: Mapping[str, tuple[int, ...]], base_sha256: str, adaptations: Iterable[Adaptation]
) -> dict[str, npt.NDArray[np.float64]]:
    """The sum of a set's changes, by parameter; the same bits in whatever order it is given.

    Raises:
        ConfigError: an adaptation of other weights, one that is there twice, or a tensor that the weights do not have.
    """
    every = sorted(adaptations, key=lambda one: one.adaptation_id)
    ids = [one.adaptation_id for one in every]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise ConfigError(f"the adaptation {twice} is there twice; give it once")
    total: dict[str, npt.NDArray[np.float64]] = {}
    for one in every:
        if one.record.base_sha256 != base_sha256:
            raise ConfigError(
                f"the adaptation {one.adaptation_id} is of the weights {one.record.base_sha256[:16]}, these are "
                f"{base_sha256[:16]}; adapt this release anew"
            )
        for name in dict.fromkeys(key.partition(":")[0] for key in one.tensors):
            change = _change(one.tensors, name)
            if name not in shapes or change.size != np.prod(shapes[name]):
                raise ConfigError(f"the adaptation {one.adaptation_id} changes {name}, which these weights do not have")
            total[name] = total.get(name, np.zeros(shapes[name])) + change.reshape(shapes[name])
    return total


def composed(base: Tensors, base_sha256: str, adaptations: Iterable[Adaptation]) -> dict[str, npt.NDArray[np.float32]]:
    """The released weights with the changes of a set, added in float64.

    Raises:
        ConfigError: as :func:`total_change`.
    """
    total = total_change({name: tensor.shape for name, tensor in base.items()}, base_sha256, adaptations)
    return {
        name: (tensor.astype(np.float64) + total[name]).astype(tensor.dtype) if name in total else tensor
        for name, tensor in base.items()
    }


def _change(tensors: Tensors, name: str) -> npt.NDArray[np.float64]:
    if name in tensors:
        return tensors[name].astype(np.float64)
    try:
        return tensors[f"{name}:left"].astype(np.float64) @ tensors[f"{name}:right"].astype(np.float64)
    except (KeyError, ValueError):
        raise IntegrityError(f"the change of {name} lacks one of its two factors, or they do not fit") from None


def write_adaptation(path: Path, adaptation: Adaptation, key: SigningKey | None) -> None:
    """Write it, atomically; without a key only who allows unsigned ones reads it."""
    envelope: dict[str, object] = {"record": adaptation.record.model_dump(mode="json")}
    if key is not None:
        signature = key.sign(_PURPOSE + _canonical(adaptation.record))
        envelope |= {"public_key": key.public.raw.hex(), "signature": signature.hex()}
    # One entry: the order of several is not always the same.
    metadata = {_ENVELOPE: json.dumps(envelope, sort_keys=True)}
    tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in sorted(adaptation.tensors.items())}
    atomic_write(path, safetensors.numpy.save(tensors, metadata=metadata))


def read_adaptation(path: Path, trust: TrustStore, *, allow_unsigned: bool = False) -> Adaptation:
    """Read what :func:`write_adaptation` wrote.

    Raises:
        ConfigError: no such file, or no adaptation. IntegrityError: cut off or changed.
        SignatureError: unsigned, or signed by nobody who is trusted. FormatVersionError: a newer samespace wrote it.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such adaptation")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (safetensors.SafetensorError, OSError) as error:
        raise IntegrityError(f"{path}: cut off or damaged: {error}") from None
    if _ENVELOPE not in metadata:
        raise ConfigError(f"{path}: holds tensors, but no adaptation")
    try:
        envelope = json.loads(metadata[_ENVELOPE])
        content = envelope["record"]
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > ADAPTATION_VERSION:
            raise FormatVersionError(f"{path}: is of version {version}; install a newer samespace to read it")
        record = AdaptationRecord.model_validate(content)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: its record cannot be read: {error}") from None
    _verify(path, record, envelope, trust, allow_unsigned=allow_unsigned)
    return Adaptation(record, tensors)


def _verify(
    path: Path, record: AdaptationRecord, envelope: Mapping[str, str], trust: TrustStore, *, allow_unsigned: bool
) -> None:
    if "public_key" not in envelope or "signature" not in envelope:
        if allow_unsigned:
            return
        raise SignatureError(f"{path}: is not signed; sign it with a key that is trusted here (samespace keys)")
    try:
        key, signature = PublicKey(bytes.fromhex(envelope["public_key"])), bytes.fromhex(envelope["signature"])
    except (ValueError, TypeError):
        raise SignatureError(f"{path}: its signature is no signature") from None
    if len(signature) != 64 or not key.verify(_PURPOSE + _canonical(record), signature):
        raise SignatureError(f"{path}: the signature does not fit: something was changed; sign it again")
    if trust.find(key) is None and not allow_unsigned:
        raise SignatureError(
            f"{path}: is signed by the key {key.key_id}, which is not trusted here; run 'samespace keys trust FILE'"
        )


def _canonical(record: AdaptationRecord) -> bytes:
    return canonical_json(record.model_dump(mode="json"))


def _sha256(tensors: Tensors) -> str:
    facts = {
        name: [list(tensor.shape), digest(np.ascontiguousarray(tensor, np.float32).tobytes())]
        for name, tensor in tensors.items()
    }
    return digest(canonical_json(facts))
