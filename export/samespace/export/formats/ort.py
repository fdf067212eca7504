"""ORT, onnxruntime's own flat format for its mobile and minimal builds: made of the ONNX artifact, at the same precisions.

Only optimisations that any CPU understands are in the file's graph. Fusions for one kind of hardware are kept beside it and are
replayed where a session asks for it (``session.enable_saved_runtime_optimizations`` = ``1``, as our runtime ``ort`` does);
without it int8 is right but slow. Baked in, they would turn fp16 weights into float32 ones, twice the size.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal

from samespace.export.formats.base import Conversion, Precision
from samespace.export.formats.onnx import OnnxExporter
from samespace.export.formats.onnx_int8 import int8_recipe
from samespace.export.formats.ort_order import in_steady_order
from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.errors import ExportError
from samespace.sdk.runtimes.onnx import load_onnxruntime

__all__ = ["OrtExporter", "to_onnx", "to_ort"]


class OrtExporter:
    """One ``.ort`` file; a :class:`~samespace.export.quantisation.layers.LayerQuantiser` too."""

    format: ClassVar[Literal["ort"]] = "ort"
    suffix: ClassVar[str] = ".ort"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        # int8 is made from the fp32 artifact, so that quantise() of that artifact gives the same bytes.
        onnx = OnnxExporter().convert(graph, "fp32" if precision == "int8" else precision, options)
        data, recipe = to_ort(onnx.files[""]), onnx.recipe
        if precision == "int8":
            data, recipe = self.quantise(data, options), recipe | int8_recipe(options)
        return Conversion(
            files={"": data},
            input=onnx.input,
            output=onnx.output,
            recipe=recipe
            | {
                "format": "ORT with runtime optimisations",
                "onnxruntime": load_onnxruntime().__version__,
                "session": {"session.enable_saved_runtime_optimizations": "1"},
            },
            min_runtime=onnx.min_runtime,
        )

    def layers(self, fp32: bytes) -> tuple[str, ...]:
        return OnnxExporter().layers(to_onnx(fp32))

    def quantise(self, fp32: bytes, options: ExportOptions) -> bytes:
        return to_ort(OnnxExporter().quantise(to_onnx(fp32), options))


def to_ort(onnx: bytes) -> bytes:
    """An ONNX file as an ORT file, with fusions for the CPU beside the graph.

    Raises:
        ExportError: onnxruntime refuses the file.
    """
    # As onnxruntime.tools.convert_onnx_modelsto_ort does it in the style "Runtime"; that prints, and converts everything twice.
    entries = {
        "session.save_model_format": "ORT",
        "session.qdqisint8allowed": "0",
        "optimization.minimal_build_optimizations": "save",
    }
    return in_steady_order(_saved(onnx, "ORT_ENABLE_ALL", entries))


def to_onnx(ort: bytes) -> bytes:
    """The graph of an ORT file as an ONNX file, without the fusions beside it.

    Raises:
        ExportError: onnxruntime refuses the file.
    """
    import onnx

    model = onnx.load_model_from_string(_saved(ort, "ORT_DISABLE_ALL", {"session.save_model_format": "ONNX"}))
    # The flat format does not keep the name, without which ONNX is not valid.
    model.graph.name = model.graph.name or "main_graph"
    return model.SerializeToString(deterministic=True)


def _saved(model: bytes, optimisations: str, entries: dict[str, str]) -> bytes:
    """What onnxruntime writes when it has opened a model with these settings."""
    ort = load_onnxruntime()
    settings: Any = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, optimisations)
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    with tempfile.TemporaryDirectory(prefix="samespace-ort-") as folder:
        target = Path(folder) / "model"
        settings.optimized_model_filepath = str(target)
        try:
            # NCHWc is a layout of x86 only.
            ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"])
        except Exception as error:
            raise ExportError(f"onnxruntime {ort.__version__} cannot convert between ONNX and ORT: {error}") from error
        return target.read_bytes()
