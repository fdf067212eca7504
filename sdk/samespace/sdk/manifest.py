"""What a bundle says about itself: ``manifest.json``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from samespace.sdk.identity import ModelRecord, SpaceRecord, canonical_json, digest

__all__ = [
    "FORMATS",
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "MAX_BYTES",
    "MAX_FILES",
    "PRECISIONS",
    "SIGNATURE_FILE",
    "Artifact",
    "FileEntry",
    "Format",
    "Manifest",
    "Precision",
    "TensorSpec",
    "is_plain_path",
    "listed_id",
]

#: Version of the bundle format that this samespace writes; it reads this one and all older ones.
FORMAT_VERSION = 2
#: The two files that a manifest does not list.
MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "signature.json"
#: Hard caps of one bundle, whatever its manifest says: files, and bytes of all files together.
MAX_FILES, MAX_BYTES = 10_000, 2 * 1024**3

#: Formats of artifacts. ``ort`` is onnxruntime's own flat format, for its mobile builds.
Format = Literal["onnx", "ort", "tflite", "coreml", "executorch"]
FORMATS: tuple[Format, ...] = get_args(Format)
#: What weights and arithmetic are. ``int8``: weights and, but in Core ML, activations, with ranges from calibration;
#: ``int8-dynamic``: activations quantised as they come; ``palette``: weights as indices of 6 or 4 bits into tables.
Precision = Literal["fp32", "fp16", "int8", "int8-dynamic", "palette6", "palette4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: One step of a path: nothing hidden, nothing that a shell or a file system reads in another way, no trailing dot.
_STEP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(?<!\.)")


def is_plain_path(path: str) -> bool:
    """Whether ``path`` names one place below a folder, the same on every system.

    Steps of letters, digits, ``.``, ``_``, ``+`` and ``-``, divided by ``/``: no ``..``, no drive, no backslash, nothing
    hidden, no character that file systems normalise; at most 255 characters.
    """
    return len(path) <= 255 and all(_STEP.fullmatch(step) for step in path.split("/"))


def listed_id(files: Iterable[tuple[str, int, str]]) -> str:
    """Artifact id of files given as ``(path below the artifact, size, sha256)``.

    A single file has the path ``""`` and its own SHA-256 as id; a package has that of its canonical, sorted list of files.
    """
    listed = sorted(files)
    if len(listed) == 1 and listed[0][0] == "":
        return listed[0][2]
    return digest(canonical_json(listed))


def _plain(path: str) -> str:
    if not is_plain_path(path):
        raise ValueError(
            f"{path!r} is not a plain relative path inside the bundle (letters, digits, '.', '_', '+', '-', and '/' between)"
        )
    return path


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_PlainPath = Annotated[str, AfterValidator(_plain)]


class FileEntry(_Part):
    """One file of the bundle; every file but ``manifest.json`` and ``signature.json`` is listed."""

    path: _PlainPath = Field(description="relative, forward slashes; see is_plain_path")
    size: int = Field(ge=0, le=MAX_BYTES, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


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

    path: _PlainPath = Field(description="file, or folder of an .mlpackage, below the bundle")
    format: Format
    precision: Precision
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

    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    created: str = Field(description="ISO 8601, UTC")
    model: ModelRecord
    model_id: str
    space: SpaceRecord
    space_id: str
    artifacts: tuple[Artifact, ...] = Field(max_length=64)
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
        # A narrower model is compared on the first coordinates.
        if self.model.dim > self.space.dim:
            raise ValueError(f"the model embeds in {self.model.dim} dimensions, its space has {self.space.dim}")
        return self

    @model_validator(mode="after")
    def _files_fit_together(self) -> Manifest:
        if len(self.files) > MAX_FILES or sum(entry.size for entry in self.files) > MAX_BYTES:
            raise ValueError(f"a bundle holds at most {MAX_FILES} files and {MAX_BYTES} bytes")
        # Compared without case: on some file systems 'a' and 'A' are one file.
        folded = {MANIFEST_FILE, SIGNATURE_FILE}
        for entry in self.files:
            if entry.path.lower() in folded:
                raise ValueError(
                    f"file {entry.path!r} is listed twice, differs from another by case only, or has a reserved name"
                )
            folded.add(entry.path.lower())
        folders = {folder for path in folded for folder in _folders(path)}
        if both := sorted(folded & folders):
            raise ValueError(f"{both[0]!r} is listed as a file, and as the folder of another file")
        return self

    @model_validator(mode="after")
    def _artifacts_are_listed(self) -> Manifest:
        for artifact in self.artifacts:
            files = [(entry.path[len(artifact.path) + 1 :], entry.size, entry.sha256) for entry in self.files_of(artifact)]
            if not files:
                raise ValueError(f"artifact {artifact.name}: {artifact.path!r} is not among the files")
            if artifact.artifact_id != listed_id(files):
                raise ValueError(f"artifact {artifact.name}: its artifact_id does not fit the files at {artifact.path!r}")
        return self

    def files_of(self, artifact: Artifact) -> tuple[FileEntry, ...]:
        """The entries of one artifact: its file, or all files below its folder."""
        return tuple(entry for entry in self.files if entry.path == artifact.path or entry.path.startswith(artifact.path + "/"))

    @property
    def role(self) -> Literal["cloud", "edge"]:
        return self.model.role


def _folders(path: str) -> list[str]:
    steps = path.split("/")
    return ["/".join(steps[:end]) for end in range(1, len(steps))]
