"""Every model family as Core ML at every precision: how well the reference evaluator agrees with torch, and how large it is.

``python benchmarks/coreml_precisions.py [FAMILY...]`` prints the table; :func:`matrix` gives it to other benchmarks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from samespace.edge.models.registry import build_model
from samespace.export import DeviceGraph, TorchRuntime
from samespace.export.formats import exporter_class
from samespace.export.formats.base import Conversion, Precision, artifact_of
from samespace.export.formats.coreml import CoremlExporter
from samespace.export.options import ExportOptions
from samespace.sdk.bundle import artifact_id
from samespace.sdk.identity import ModelRecord
from samespace.sdk.metrics import cosine
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.runtimes import LoadedArtifact, open_runtime
from samespace.sdk.runtimes.mil.program import read_package

__all__ = ["FAMILIES", "Row", "example", "matrix", "measure"]

DIM, SIZE = 16, 32
#: Family -> small arguments; of ``mobile`` all four operators, with the activation that none of the others has.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "residual": {"width": 8, "pooling": "map"},
    "inverted_residual": {"width": 8},
    "mixer": {"width": 16, "depth": 2},
    "mobile": {
        "activation": "hardswish",
        "blocks": [
            {"op": "inverted", "width": 16, "stride": 2, "expansion": 3},
            {"op": "fused", "width": 32, "kernel": 5, "expansion": 2},
            {"op": "basic", "width": 32, "kernel": 3},
            {"op": "mixer", "width": 32},
        ],
    },
    "slimmable_residual": {},
    "efficientnet_lite": {"pretrained": False},
    "wide_residual": {"width": 8, "stages": 2},
}


@dataclass(frozen=True)
class Row:
    """One model at one precision.

    Attributes:
        family: of the model.
        precision: of the artifact, made for iOS ``ios`` and newer.
        worst: least cosine to torch fp32 over the pictures; ``mean`` their mean.
        bytes: of the package.
        seconds: of the conversion.
        operators: MIL's names of the operators in it.
    """

    family: str
    precision: Precision
    ios: int
    worst: float
    mean: float
    bytes: int
    seconds: float
    operators: tuple[str, ...]


def matrix(
    families: Sequence[str] = tuple(FAMILIES),
    precisions: Sequence[Precision] = CoremlExporter.precisions,
    targets: Sequence[int] = (17, 18),
) -> Iterator[Row]:
    """Convert and measure, family by family; about 5 s each."""
    for family in families:
        model, record = example(family)
        graph, pictures = DeviceGraph(model, record.preprocess), noise(32)
        reference = TorchRuntime(model, record).run(pictures)
        for ios in targets:
            for precision in precisions:
                start = time.perf_counter()
                conversion = CoremlExporter().convert(graph, precision, ExportOptions(min_ios=ios))
                yield measure(family, precision, ios, conversion, pictures, reference, time.perf_counter() - start)


def example(family: str, seed: int = 0) -> tuple[nn.Module, ModelRecord]:
    """A small, untrained model of the family whose batch norms are not those of a fresh network."""
    arguments = {"dim": DIM, "image_size": SIZE, **FAMILIES[family]}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build_model(family, arguments).train()
        model(torch.randn(32, 3, SIZE, SIZE))
    record = ModelRecord(
        name=family,
        role="edge",
        family=family,
        arguments=arguments,
        dim=DIM,
        preprocess=Preprocess(size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)),
        weights_sha256="0" * 64,
    )
    return model.eval(), record


def noise(count: int) -> npt.NDArray[np.uint8]:
    """``(count, SIZE, SIZE, 3)`` coarse pictures."""
    coarse = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)


def measure(
    family: str,
    precision: Precision,
    ios: int,
    conversion: Conversion,
    pictures: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.float32],
    seconds: float = 0.0,
) -> Row:
    """Evaluate a conversion on pictures whose torch embeddings are known."""
    entry = artifact_of(conversion, exporter_class("coreml"), precision, artifact_id(conversion.files))
    with open_runtime(LoadedArtifact(entry, conversion.files, SIZE, reference.shape[1]), "coreml_reference") as runtime:
        cosines = cosine(runtime.run(pictures), reference)
    operators = sorted({operation.kind for operation in read_package(conversion.files).operations})
    return Row(family, precision, ios, float(cosines.min()), float(cosines.mean()), conversion.size, seconds, tuple(operators))


def main(names: Sequence[str]) -> None:
    """Print the table and the operators."""
    operators: set[str] = set()
    print(f"{'family':<20} {'iOS':>3} {'precision':<10} {'least cosine':>12} {'mean':>9} {'bytes':>9} {'s':>5}")
    for row in matrix(tuple(names) or tuple(FAMILIES)):
        operators.update(row.operators)
        print(
            f"{row.family:<20} {row.ios:>3} {row.precision:<10} {row.worst:>12.7f} {row.mean:>9.6f} {row.bytes:>9} "
            f"{row.seconds:>5.1f}",
            flush=True,
        )
    print("operators:", ", ".join(sorted(operators)))


if __name__ == "__main__":
    main(sys.argv[1:])
