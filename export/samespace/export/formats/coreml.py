"""Core ML, by coremltools: an ML Program for iOS 17 with fp16 arithmetic; its input is an RGB image."""

from __future__ import annotations

import json
import tempfile
import uuid
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from samespace.export.formats.base import Conversion, Precision
from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.errors import MissingExtraError
from samespace.sdk.manifest import TensorSpec

__all__ = ["CoremlExporter"]

_PROGRAM = "Data/com.apple.CoreML/model.mlmodel"


class CoremlExporter:
    """An ``.mlpackage`` folder. Core ML hands the program ``(1, 3, size, size)`` values 0-255 of the image."""

    format: ClassVar[Literal["coreml"]] = "coreml"
    suffix: ClassVar[str] = ".mlpackage"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "fp32")

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        try:
            import coremltools as ct
        except ImportError:
            raise MissingExtraError("export", "exporting to Core ML") from None
        graph = graph.with_layout("nchw")
        example = graph.example(1, torch.float32)
        model: Any = ct.convert(
            torch.jit.trace(graph, example),
            inputs=[ct.ImageType(name="image", shape=tuple(example.shape), color_layout=ct.colorlayout.RGB)],
            outputs=[ct.TensorType(name="embedding", dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
            skip_model_load=True,
        )
        with tempfile.TemporaryDirectory(prefix="samespace-coreml-") as folder:
            package = Path(folder) / "model.mlpackage"
            model.save(str(package))
            files = {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*") if path.is_file()}
        files["Manifest.json"] = _with_steady_ids(files["Manifest.json"])
        files[_PROGRAM] = _with_steady_order(files[_PROGRAM])
        return Conversion(
            files=dict(sorted(files.items())),
            input=TensorSpec(name="image", dtype="image", layout="nhwc", dynamic_batch=False),
            output="embedding",
            recipe={
                "exporter": "coremltools jit.trace",
                "coremltools": ct.__version__,
                "torch": torch.__version__,
                "target": "iOS17",
            },
            min_runtime="iOS17",
        )


def _with_steady_order(program: bytes) -> bytes:
    """The same message with its maps in order of their keys: written as they come, they differ from process to process."""
    from coremltools.proto import Model_pb2

    message: Any = Model_pb2.Model()
    message.ParseFromString(program)
    return message.SerializeToString(deterministic=True)


def _with_steady_ids(manifest: bytes) -> bytes:
    """Items of the package get ids made from their paths instead of random ones, so that equal models give equal packages."""
    content = json.loads(manifest)
    ids = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])).upper() for old, item in content["itemInfoEntries"].items()}
    content["itemInfoEntries"] = {ids[old]: item for old, item in content["itemInfoEntries"].items()}
    content["rootModelIdentifier"] = ids[content["rootModelIdentifier"]]
    return json.dumps(content, indent=4, sort_keys=True).encode()
