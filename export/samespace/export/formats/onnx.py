"""ONNX, by torch's dynamo exporter: uint8 NHWC input, dynamic batch, opset 18."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, ClassVar, Literal

import torch

from samespace.export.formats.base import Conversion, Precision
from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.errors import ExportError, MissingExtraError
from samespace.sdk.manifest import TensorSpec

__all__ = ["OnnxExporter"]

_OPSET = 18


class OnnxExporter:
    """One ``.onnx`` file with its weights inside."""

    format: ClassVar[Literal["onnx"]] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        try:
            import onnx
            import onnxscript  # noqa: F401 - the dynamo exporter needs it
        except ImportError:
            raise MissingExtraError("export", "exporting to ONNX") from None
        graph = graph.with_layout("nhwc")
        # An example of one image would be taken for a fixed batch.
        program = torch.onnx.export(
            graph,
            (graph.example(2, torch.uint8),),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["embedding"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        )
        if program is None:
            raise ExportError("torch's ONNX exporter gave no program")
        model = program.model_proto
        _strip(model)
        onnx.checker.check_model(model)
        return Conversion(
            files={"": model.SerializeToString(deterministic=True)},
            input=TensorSpec(name="image", dtype="uint8", layout="nhwc", dynamic_batch=True),
            output="embedding",
            recipe={
                "exporter": "torch.onnx dynamo",
                "opset": model.opset_import[0].version,
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxscript": version("onnxscript"),
            },
            min_runtime="onnxruntime 1.18",
        )


def _strip(model: Any) -> None:
    """Remove what the exporter notes of where the code was: paths of the machine, and a fifth of the file."""
    graph = model.graph
    del model.metadata_props[:]
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
