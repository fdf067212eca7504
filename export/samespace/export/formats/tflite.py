"""TFLite, by litert-torch: uint8 NHWC input, batch 1 that the runtime resizes."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from samespace.export.formats.base import Conversion, Precision
from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.errors import MissingExtraError
from samespace.sdk.manifest import TensorSpec

__all__ = ["TfliteExporter"]


class TfliteExporter:
    """One ``.tflite`` file."""

    format: ClassVar[Literal["tflite"]] = "tflite"
    suffix: ClassVar[str] = ".tflite"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        try:
            import litert_torch
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise MissingExtraError("export", "exporting to TFLite") from None
        graph = graph.with_layout("nhwc")
        model = litert_torch.convert(graph, (graph.example(1, torch.uint8),))
        with tempfile.TemporaryDirectory(prefix="samespace-tflite-") as folder:
            path = Path(folder) / "model.tflite"
            model.export(str(path))
            data = path.read_bytes()
        interpreter = Interpreter(model_content=data)
        return Conversion(
            files={"": data},
            input=TensorSpec(
                name=interpreter.get_input_details()[0]["name"],
                dtype="uint8",
                layout="nhwc",
                dynamic_batch=_resizes(interpreter, graph.preprocess.size),
            ),
            output=interpreter.get_output_details()[0]["name"],
            recipe={"exporter": "litert-torch", "litert-torch": version("litert-torch"), "torch": torch.__version__},
            min_runtime="TensorFlow Lite 2.14",
        )


def _resizes(interpreter: Any, size: int) -> bool:
    """Whether the batch can be resized; a reshape to constants in the model forbids it. The interpreter is of no use after."""
    index = interpreter.get_input_details()[0]["index"]
    try:
        interpreter.resize_tensor_input(index, [3, size, size, 3])
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, np.zeros((3, size, size, 3), np.uint8))
        interpreter.invoke()
    except (RuntimeError, ValueError):
        return False
    return int(interpreter.get_output_details()[0]["shape"][0]) == 3
