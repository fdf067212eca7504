"""ONNX, by torch's dynamo exporter: uint8 NHWC input, dynamic batch, opset 18; in fp32, fp16 and static int8."""

from __future__ import annotations

import hashlib
import weakref
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import torch

from samespace.export.formats.base import Conversion, Precision
from samespace.export.formats.onnx_fp16 import to_fp16
from samespace.export.formats.onnx_graph import layers_of, name_nodes, strip
from samespace.export.formats.onnx_int8 import int8_recipe, to_int8
from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.errors import ExportError, MissingExtraError
from samespace.sdk.manifest import TensorSpec

__all__ = ["OnnxExporter"]

_OPSET = 18
#: Graph -> digest of its tensors and its fp32 artifact: tracing takes most of the time, and all precisions begin with it.
_TRACED: weakref.WeakKeyDictionary[DeviceGraph, tuple[bytes, bytes]] = weakref.WeakKeyDictionary()


class OnnxExporter:
    """One ``.onnx`` file with its weights inside; a :class:`~samespace.export.quantisation.layers.LayerQuantiser` too."""

    format: ClassVar[Literal["onnx"]] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        model = _model(_traced_once(graph))
        recipe = {
            "exporter": "torch.onnx dynamo",
            "opset": model.opset_import[0].version,
            "torch": torch.__version__,
            "onnx": version("onnx"),
            "onnxscript": version("onnxscript"),
        }
        if precision == "fp16":
            model = to_fp16(model)
            recipe |= {"float": "scaling of the pixels, L2 norm"}
        elif precision == "int8":
            model = to_int8(model, options)
            recipe |= int8_recipe(options)
        return Conversion(
            files={"": _bytes(model)},
            input=TensorSpec(name="image", dtype="uint8", layout="nhwc", dynamic_batch=True),
            output="embedding",
            recipe=recipe,
            min_runtime="onnxruntime 1.18",
        )

    def layers(self, fp32: bytes) -> tuple[str, ...]:
        return layers_of(_model(fp32))

    def quantise(self, fp32: bytes, options: ExportOptions) -> bytes:
        return _bytes(to_int8(_model(fp32), options))


def _traced_once(graph: DeviceGraph) -> bytes:
    """The fp32 artifact of a graph, remembered as long as its tensors stay."""
    state = hashlib.sha256(repr(graph).encode())
    for tensor in graph.state_dict().values():
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    known = _TRACED.get(graph)
    if known is None or known[0] != state.digest():
        known = _TRACED[graph] = (state.digest(), _bytes(_traced(graph)))
    return known[1]


def _traced(graph: DeviceGraph) -> Any:
    """The graph as a fp32 ModelProto with our names."""
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
    name_nodes(model)
    strip(model)
    onnx.checker.check_model(model)
    return model


def _model(data: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(data)


def _bytes(model: Any) -> bytes:
    return model.SerializeToString(deterministic=True)
