"""What an export format is: a name, its precisions, and one method that converts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.manifest import Artifact, Format, Precision, TensorSpec

__all__ = ["Conversion", "Exporter", "Precision"]


@dataclass(frozen=True)
class Conversion:
    """What a converter made.

    Attributes:
        files: path below the artifact -> bytes; a single file has the one key ``""``.
        input: what the artifact takes.
        output: name of its output.
        recipe: how it was made: exporter, versions, options.
        min_runtime: oldest runtime it was made for.
        quantisation: how static int8 was chosen and what it costs, see :func:`samespace.export.quantisation.choose_int8`.
    """

    files: Mapping[str, bytes]
    input: TensorSpec
    output: str
    recipe: dict[str, Any] = field(default_factory=dict)
    min_runtime: str = ""
    quantisation: dict[str, Any] | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(len(data) for data in self.files.values())


class Exporter(Protocol):
    """Converts device graphs to one format. Lives one to a file in this folder, and is named in ``formats/__init__.py``.

    Attributes:
        format: as manifests name it.
        suffix: of the artifact's file or folder.
        precisions: those that it writes, first the one that is exported by default.
    """

    format: ClassVar[Format]
    suffix: ClassVar[str]
    precisions: ClassVar[tuple[Precision, ...]]

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        """Convert a graph; whatever the converter raises may pass through."""
        ...


def artifact_of(conversion: Conversion, exporter: type[Exporter], precision: Precision, artifact_id: str) -> Artifact:
    """The manifest's entry for a conversion."""
    return Artifact(
        path=f"artifacts/model.{precision}{exporter.suffix}",
        format=exporter.format,
        precision=precision,
        artifact_id=artifact_id,
        input=conversion.input,
        output=conversion.output,
        recipe=conversion.recipe,
        min_runtime=conversion.min_runtime,
    )
