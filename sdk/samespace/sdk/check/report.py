"""What a check measured: plain numbers with n, interval and worst cases. JSON both ways, and judged again by any gate.

A report holds no verdict. The values of each probe are kept, so that another gate may ask another percentile or margin of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samespace.sdk.errors import ConfigError, FormatVersionError
from samespace.sdk.files import atomic_write
from samespace.sdk.manifest import Precision
from samespace.sdk.metrics import Estimate

__all__ = [
    "REPORT_VERSION",
    "Case",
    "Comparison",
    "CompatibilityReport",
    "EmbeddingLayer",
    "Found",
    "HardQueries",
    "Hits",
    "RetrievalLayer",
    "Settings",
    "Suspect",
    "TensorLayer",
    "Verification",
    "WorstCase",
]

#: Version of reports that this samespace writes; it reads this one and all older ones. Version 2 added the hardest queries, the
#: cases with pictures and the diagnosis, and lets the tensor layer be absent.
REPORT_VERSION = 2


#: An image as a data URI; nothing else may get into a page from a report that somebody else wrote.
Picture = Annotated[str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/]*={0,2}$")]

PictureKind = Literal["golden", "device", "difference"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(_Part):
    """How to measure; the same settings give the same numbers."""

    seed: int = Field(default=0, description="of the bootstrap")
    n_boot: int = Field(default=2000, ge=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    worst_percent: float = Field(default=1.0, ge=0, le=100)
    overlap_k: int = Field(default=10, ge=1)
    recall_k: tuple[int, ...] = (1, 5)
    far: float = Field(default=1e-3, gt=0, lt=1, description="false accept rate whose threshold is transferred")
    worst_cases: int = Field(default=5, ge=1, description="how many are listed")
    hard_share: float = Field(default=0.25, gt=0, le=1, description="share of the queries that are the hardest")
    threads: int = Field(default=0, ge=0, description="0: the runtime chooses")
    batch_size: int = Field(default=32, ge=1)


class WorstCase(_Part):
    """One probe image that came out badly."""

    probe: int = Field(ge=0, description="index of the probe image")
    value: float

    @classmethod
    def lowest(cls, values: npt.NDArray[np.floating], count: int) -> tuple[WorstCase, ...]:
        """The ``count`` lowest of ``(n,)`` values, one of each probe image; of equal ones the first image."""
        return tuple(cls(probe=int(index), value=float(values[index])) for index in np.argsort(values, kind="stable")[:count])


class TensorLayer(_Part):
    """Preprocessing against the golden tensors."""

    n: int
    exact: int = Field(description="images whose tensor is the golden one, bit for bit")
    max_difference: int = Field(ge=0, le=255, description="largest difference of one value, in levels of 0-255")
    worst: tuple[WorstCase, ...] = Field(description="largest difference of the image, in levels")


class EmbeddingLayer(_Part):
    """Embeddings against the fp32 reference of the same model."""

    n: int
    worst_cosine: float = Field(description="the settings' worst percentile of the cosines")
    min_cosine: float
    mean_cosine: Estimate
    max_angle: float = Field(description="degrees")
    score_shift: Estimate = Field(description="how far the score of the nearest item in the bundle's sample moves")
    max_score_shift: float = Field(description="largest absolute shift")
    worst: tuple[WorstCase, ...] = Field(description="lowest cosines")
    cosine: tuple[float, ...] = Field(description="of each probe")


class Comparison(_Part):
    """One metric of the device and of the reference, and their paired difference, in rates of 0-1."""

    device: Estimate
    reference: Estimate
    difference: Estimate = Field(description="device - reference, query by query")


class Verification(_Part):
    """Same or not, at the threshold that the reference has for a false accept rate."""

    far: float
    threshold: float
    device_far: float = Field(description="false accept rate of the device at this threshold")
    tar: Comparison


class Hits(_Part):
    """Whether the nearest gallery item was right, query by query."""

    probe: tuple[int, ...] = Field(description="index of the probe image of each query")
    device: tuple[bool, ...]
    reference: tuple[bool, ...]
    cloud: tuple[bool, ...]


class HardQueries(_Part):
    """The queries that the reference decides most narrowly: near neighbours, which a small error swaps."""

    by: Literal["labels", "ranks"] = Field(
        description="margin of a query in the reference's scores: nearest right against nearest wrong item, either way round; "
        "without labels, rank 1 against rank 2"
    )
    margin: float = Field(ge=0, description="largest margin among these queries")
    probe: tuple[int, ...] = Field(description="index of the probe image of each, narrowest first")
    overlap: Estimate = Field(description="as in the layer, of these queries")
    recall: Comparison | None = Field(default=None, description="recall@1 of these queries; None without labels")


class RetrievalLayer(_Part):
    """Device query against cloud gallery. Without labels: overlap only, and the rest stays empty."""

    gallery: str = Field(description="where it came from")
    gallery_model_id: str | None = Field(description="who embedded it; None when nothing says so")
    gallery_size: int | None = Field(description="items; None when the service does not say")
    overlap_k: int
    overlap: Estimate = Field(description="share of the k nearest that device and reference have in common")
    worst: tuple[WorstCase, ...] = Field(description="lowest overlaps")
    overlaps: tuple[float, ...] = Field(description="of each probe")
    queries: int = Field(default=0, description="probes with a label that the gallery has, too")
    recall: dict[int, Comparison] = Field(default_factory=dict, description="k -> recall@k")
    cloud_recall: dict[int, Estimate] = Field(
        default_factory=dict, description="k -> recall@k of the cloud model's own embeddings of the probes (the paragon)"
    )
    chance: float | None = Field(default=None, description="recall@1 of a random ranking")
    mean_average_precision: Comparison | None = None
    verification: Verification | None = Field(default=None, description="None where impostor pairs are too few")
    negative_flips: Estimate | None = Field(default=None, description="rank 1 right by the reference, wrong on the device")
    relative_negative_flips: float | None = Field(default=None, description="PCT eq. 11")
    hits: Hits | None = None
    hard: HardQueries | None = Field(default=None, description="None in reports of version 1")


class Found(_Part):
    """One gallery item that a query found."""

    item: str = Field(description="id, or row of the gallery")
    label: str | None
    score: float


class Case(_Part):
    """A probe image that is worth a look: what went in, and what was found."""

    probe: int = Field(ge=0)
    why: tuple[str, ...] = Field(description="what is notable about it")
    label: str | None
    cosine: float | None
    overlap: float | None
    reference: tuple[Found, ...] = Field(default=(), description="nearest items by the reference, best first")
    device: tuple[Found, ...] = Field(default=(), description="nearest items by the device, best first")
    pictures: dict[PictureKind, Picture] = Field(
        default_factory=dict, description="small; device and difference only where its tensor is not the golden one"
    )


class Suspect(_Part):
    """A cause that would explain what was measured."""

    name: str
    summary: str
    mend: str
    fit: float = Field(description="how much of the deviation it explains, at most 1")


class CompatibilityReport(_Part):
    """All that was measured of one artifact in one runtime on one device, and how to measure it again."""

    format_version: int = Field(default=REPORT_VERSION, ge=1, le=REPORT_VERSION)
    created: str = Field(description="ISO 8601, UTC")
    samespace: str = Field(description="version")
    bundle: str
    signer: str | None = Field(description="key id")
    trusted: bool
    model: str = Field(description="name")
    model_id: str
    space_id: str
    artifact: str
    artifact_id: str
    precision: Precision
    device: str
    runtime: str
    runtime_version: str
    host: dict[str, str]
    settings: Settings
    gates: dict[str, float] = Field(description="limits that the bundle asks for at this precision")
    reproduce: str = Field(description="the command; empty when there is none")
    refused: str = Field(description="why there are no usable embeddings; empty when there are")
    tensor: TensorLayer | None = Field(description="None when the device does not show its tensors")
    embedding: EmbeddingLayer | None
    retrieval: RetrievalLayer | None
    cases: tuple[Case, ...] = ()
    diagnosis: tuple[Suspect, ...] | None = Field(
        default=None, description="best first; empty: nothing is wrong; None: not asked, since the default gate passed"
    )

    @property
    def title(self) -> str:
        """``onnx-fp32 in onnx on host``."""
        return f"{self.artifact} in {self.runtime} on {self.device}"

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        atomic_write(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def parse(cls, data: str | bytes, name: str) -> CompatibilityReport:
        """Read a report from JSON.

        Args:
            data: as :meth:`save` wrote it.
            name: of the file, for messages.

        Raises:
            ConfigError: not a report. FormatVersionError: written by a newer samespace.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["loc"] == ("format_version",) and isinstance(first["input"], int) and first["input"] > REPORT_VERSION:
                raise FormatVersionError(
                    f"{name}: a report of format {first['input']}; this samespace reads up to {REPORT_VERSION}: upgrade it"
                ) from None
            field = ".".join(str(step) for step in first["loc"]) or "content"
            raise ConfigError(
                f"{name}: not a compatibility report ({field}: {first['msg']}); run samespace check again"
            ) from None
