"""The costs of an artifact of a bundle, whatever its format."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from samespace.edge.devices.costs.coreml_graph import coreml_graph
from samespace.edge.devices.costs.graph import Graph, GraphCosts
from samespace.edge.devices.costs.memory import measured_memory
from samespace.edge.devices.costs.onnx_graph import onnx_graph, ort_graph
from samespace.edge.devices.costs.tflite_graph import tflite_graph
from samespace.sdk.bundle import Bundle
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.runtimes.registry import runtimes_for

__all__ = ["GRAPHS", "ArtifactCosts", "artifact_costs"]

#: Format -> what reads its graph.
GRAPHS: Mapping[str, Callable[[LoadedArtifact], Graph]] = {
    "onnx": lambda artifact: onnx_graph(artifact.single_file),
    "ort": lambda artifact: ort_graph(artifact.single_file),
    "tflite": lambda artifact: tflite_graph(artifact.single_file),
    "coreml": lambda artifact: coreml_graph(artifact.files),
}
#: Runtimes that evaluate a translation of the artifact: their memory says nothing of a device's.
_NO_DEVICES = ("coreml_reference",)


@dataclass(frozen=True)
class ArtifactCosts:
    """What one image costs with one artifact. None is what could not be had; ``left_out`` says why.

    Attributes:
        artifact: name.
        format: of it; precision: likewise.
        file_bytes: size of all its files.
        graph: counted in the artifact's own graph.
        memory: bytes that opening it and embedding one image add to a process on this machine, the median of several processes.
        memory_range: least and most of them.
        runtime: in which memory was measured.
        left_out: what is None, and why.
    """

    artifact: str
    format: str
    precision: str
    file_bytes: int
    graph: GraphCosts | None
    memory: int | None
    memory_range: tuple[int, int] | None
    runtime: str | None
    left_out: tuple[str, ...]


def artifact_costs(bundle: Bundle, artifact: str, *, repeats: int = 3) -> ArtifactCosts:
    """Count and measure.

    Args:
        bundle: opened; memory is measured only where its signer is trusted.
        artifact: name or path.
        repeats: processes in which memory is measured; 0 leaves it out.

    Raises:
        BundleError: there is no such artifact.
    """
    loaded = bundle.artifact(artifact)
    spec, left_out = loaded.spec, []
    graph: GraphCosts | None = None
    if spec.format not in GRAPHS:
        left_out.append(f"MACs, parameters, bytes and activations: graphs of {spec.format} files are not read")
    else:
        try:
            graph = GRAPHS[spec.format](loaded).costs()
        except (ValueError, ImportError) as error:
            left_out.append(f"MACs, parameters, bytes and activations: {error}")
    runtime = next((name for name in runtimes_for(spec.format) if name not in _NO_DEVICES), None)
    found: list[int] = []
    if not repeats:
        left_out.append("memory: not asked for")
    elif runtime is None:
        left_out.append(f"memory: no runtime for {spec.format} on this machine that devices have, too")
    elif not bundle.trusted:
        left_out.append("memory: the bundle's signer is not trusted, so that it is not run")
    else:
        try:
            found = [measured_memory(bundle.path, spec.path, runtime) for _ in range(repeats)]
        except ValueError as error:
            left_out.append(f"memory: {error}")
    return ArtifactCosts(
        artifact=spec.name,
        format=spec.format,
        precision=spec.precision,
        file_bytes=sum(len(data) for data in loaded.files.values()),
        graph=graph,
        memory=int(statistics.median(found)) if found else None,
        memory_range=(min(found), max(found)) if found else None,
        runtime=runtime if found else None,
        left_out=tuple(left_out),
    )
