"""int8 that is right on one CPU and wrong on another: 16-bit sums that saturate, found before an artifact leaves.

x86 CPUs without VNNI add two products of uint8 x int8 in 16 bits, which saturate. ARM, wasm and x86 with VNNI do not, so a
machine that has VNNI cannot show the fault: there the other CPU is computed (:mod:`.pair_sums`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.export.pair_sums import SATURATED, clipped_graph, layers_that_may_clip
from samespace.sdk.check.gate import Gate
from samespace.sdk.errors import ExportError
from samespace.sdk.metrics.agreement import cosine, worst_percentile
from samespace.sdk.runtimes.base import LoadedArtifact, RuntimeOptions
from samespace.sdk.runtimes.onnx import open_session
from samespace.sdk.runtimes.registry import open_runtime
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["Saturation", "measure_saturation", "refuse_saturation"]

#: Pictures for which the other CPU is computed.
_COMPUTED = 32
#: Layers that a message names.
_NAMED = 3


@dataclass(frozen=True)
class Saturation:
    """How far onnxruntime's optimised int8 is from the graph as it was written.

    Attributes:
        n: pictures.
        here: worst-1 % cosine between the two on this machine.
        without_vnni: the same on an x86 CPU without VNNI, computed; 1 where no weight is large enough to saturate.
        layers: names of the layers that saturate there, and the share of their sums that do, the most first.
    """

    n: int
    here: float
    without_vnni: float
    layers: tuple[tuple[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_saturation(artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], threads: int = 0) -> Saturation:
    """Run an int8 artifact of the formats ``onnx`` or ``ort`` with and without graph optimisations.

    Args:
        artifact: its bytes.
        tensors: ``(n, size, size, 3)`` uint8 preprocessed real pictures; saturation depends on them.
        threads: of the runtime.

    Raises:
        ConfigError: no runtime for the format. RuntimeFailure: the artifact does not run.
    """
    plain = _run(artifact, tensors, RuntimeOptions(threads=threads, optimise=False))
    here = worst_percentile(cosine(_run(artifact, tensors, RuntimeOptions(threads=threads)), plain))
    without_vnni, layers = _without_vnni(artifact, tensors, plain, threads)
    return Saturation(len(tensors), here, without_vnni, layers)


def refuse_saturation(
    artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], name: str = "", limit: float | None = None, threads: int = 0
) -> Saturation:
    """Refuse an int8 artifact whose embeddings depend on the CPU.

    Args:
        artifact: of the formats ``onnx`` or ``ort``.
        tensors: ``(n, size, size, 3)`` uint8 preprocessed real pictures.
        name: how messages call the model.
        limit: the least worst-1 % cosine; by default that of the precision's gate.
        threads: of the runtime.

    Raises:
        ExportError: optimised and unoptimised results differ by more than the limit, here or without VNNI; says why and what
            to do. RuntimeFailure: the artifact does not run.
    """
    limit = Gate.default(artifact.spec.precision).worst_cosine if limit is None else limit
    found = measure_saturation(artifact, tensors, threads)
    # Written so that NaN counts as wrong.
    if found.here >= limit and found.without_vnni >= limit:
        return found
    what = f"{name} {artifact.spec.name}".strip()
    if not found.layers:
        raise ExportError(
            f"{what}: onnxruntime's graph optimisations change the embeddings (worst-1 % cosine {found.here:.6f} to the graph "
            f"as written, limit {limit}, n={found.n}), and 16-bit saturation is not why: no layer saturates. "
            "Nothing was written"
        )
    where = ", ".join(f"{layer!r} ({100 * share:.2g} % of its sums)" for layer, share in found.layers[:_NAMED])
    raise ExportError(
        f"{what}: saturation. On x86 CPUs without VNNI its embeddings have a worst-1 % cosine of "
        f"{min(found.here, found.without_vnni):.6f} to the graph as written, limit {limit}: sums of two products uint8 x int8 "
        f"exceed 16 bits in {where}. Quantise with reduce_range=True (weights of 7 bits, as this exporter does by default), or "
        "leave these layers in float (float_layers). Nothing was written"
    )


def _run(artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], options: RuntimeOptions) -> npt.NDArray[np.float32]:
    # By name: whatever else may run the format has not these optimisations.
    with open_runtime(artifact, artifact.spec.format, options) as runtime:
        return runtime.run(tensors)


def _without_vnni(
    artifact: LoadedArtifact, tensors: npt.NDArray[np.uint8], plain: npt.NDArray[np.float32], threads: int
) -> tuple[float, tuple[tuple[str, float], ...]]:
    import onnx

    from samespace.export.formats.ort import to_onnx

    spec = artifact.spec
    graph = to_onnx(artifact.single_file) if spec.format == "ort" else artifact.single_file
    model = onnx.load_model_from_string(graph)
    layers = layers_that_may_clip(model)
    if not layers:
        return 1.0, ()
    clipped = clipped_graph(model, layers).SerializeToString()
    session = open_session(clipped, spec.path, threads, optimise=False)
    names = [spec.output, *(layer.node.name + SATURATED for layer in layers)]
    rows = np.unique(np.linspace(0, len(tensors) - 1, _COMPUTED).astype(int))
    answers = [session.run(names, {spec.input.name: as_input(tensors[row : row + 1], spec.input)}) for row in rows]
    embeddings = np.concatenate([answer[0] for answer in answers])
    shares = np.mean([answer[1:] for answer in answers], axis=0)
    named = [(layer.node.name, float(share)) for layer, share in zip(layers, shares, strict=True) if share > 0]
    worst = worst_percentile(cosine(embeddings, plain[rows]))
    return worst, tuple(sorted(named, key=lambda entry: -entry[1]))
