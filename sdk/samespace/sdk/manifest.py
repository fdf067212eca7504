"""What a bundle says about itself: ``manifest.json``."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from samespace.sdk.identity import ModelRecord, SpaceRecord

__all__ = ["FORMAT_VERSION", "Artifact", "FileEntry", "Manifest", "TensorSpec"]

#: Version of the bundle format that this samespace writes; it reads this one and all older ones.
FORMAT_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """One file of the bundle; every file but ``manifest.json`` and ``signature.json`` is listed."""

    path: str = Field(description="relative, forward slashes, no '..'")
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if (
            not parts
            or path.startswith("/")
            or "\\" in path
            or ".." in parts
            or "\0" in path
            or str(PurePosixPath(path)) != path
        ):
            raise ValueError(f"{path!r} is not a plain relative path inside the bundle")
        return path


class TensorSpec(_Part):
    """What the artifact's input takes; the Embedder obeys it."""

    name: str
    dtype: Literal["uint8", "float32", "image"] = Field(description="image: a Core ML RGB ImageType")
    layout: Literal["nhwc", "nchw"] = "nhwc"
    dynamic_batch: bool = Field(
        description="whether one call may take any number of images (by resize where the format needs it)"
    )


class Artifact(_Part):
    """One exported file (or package folder) of the model."""

    path: str = Field(description="file, or folder of an .mlpackage, below the bundle")
    format: Literal["onnx", "tflite", "coreml"]
    precision: Literal["fp32", "fp16", "int8"]
    artifact_id: str = Field(
        pattern="^[0-9a-f]{64}$", description="SHA-256 of the file; of the canonical list of files for a package"
    )
    input: TensorSpec
    output: str = Field(description="name of the (n, dim) unit-norm float32 output")
    recipe: dict[str, Any] = Field(description="how it was converted: exporter, versions, options")
    min_runtime: str = Field(description="oldest runtime it was made for, e.g. 'iOS17' or 'onnxruntime 1.17'")

    @property
    def name(self) -> str:
        """Short name for tables and options, e.g. ``onnx-fp32``."""
        return f"{self.format}-{self.precision}"


class Manifest(_Part):
    """The contract between who exported a model and who runs it."""

    format_version: int = FORMAT_VERSION
    created: str = Field(description="ISO 8601, UTC")
    model: ModelRecord
    model_id: str
    space: SpaceRecord
    space_id: str
    artifacts: tuple[Artifact, ...]
    files: tuple[FileEntry, ...]
    gates: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="per precision: limits that the check applies, e.g. {'fp32': {'worst_cosine': 0.99999}}",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.model_id != self.model.model_id:
            raise ValueError(f"model_id {self.model_id} does not fit the model record, whose id is {self.model.model_id}")
        if self.space_id != self.space.space_id:
            raise ValueError(f"space_id {self.space_id} does not fit the space record, whose id is {self.space.space_id}")
        if self.model.dim != self.space.dim:
            raise ValueError(f"the model embeds in {self.model.dim} dimensions, its space has {self.space.dim}")
        return self

    @property
    def role(self) -> Literal["cloud", "edge"]:
        return self.model.role
