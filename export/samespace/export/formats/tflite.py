"""TFLite, by litert-torch and ai-edge-quantizer: uint8 NHWC input in every precision, batch 1 that the runtime resizes."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from samespace.export.formats.base import Conversion, Precision
from samespace.export.formats.tflite_graph import layers_of, read_operators
from samespace.export.formats.tflite_quantise import (
    DynamicScheme,
    faintest_layer,
    quantiser_recipe,
    to_dynamic,
    to_fp16,
    to_static,
)
from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.errors import ConfigError, ExportError, MissingExtraError
from samespace.sdk.manifest import TensorSpec

__all__ = ["TfliteExporter"]

#: Oldest runtime that artifacts are made for, and the first that is called LiteRT, in TensorFlow's numbering.
_OLDEST, _LITERT = (2, 14), (2, 17)
#: Activations below this may ask for a factor between two layers that no kernel can code.
_FAINT = 1e-4
#: Graph -> digest of its tensors and what it became: a model's precisions share one conversion, which takes most of the time.
_CONVERTED: weakref.WeakKeyDictionary[DeviceGraph, tuple[str, bytes]] = weakref.WeakKeyDictionary()


class TfliteExporter:
    """One ``.tflite`` file; quantises as :class:`~samespace.export.quantisation.layers.LayerQuantiser`."""

    format: ClassVar[Literal["tflite"]] = "tflite"
    suffix: ClassVar[str] = ".tflite"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8-dynamic", "int8")

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        scheme = dynamic_scheme(options.min_litert)
        if precision == "int8":
            options.pictures(graph.preprocess.size)
        fp32 = _converted(graph)
        recipe = {"exporter": "litert-torch", "litert-torch": version("litert-torch"), "torch": torch.__version__}
        if precision == "fp32":
            data = fp32
        else:
            recipe |= quantiser_recipe(precision, options, scheme)
            if precision == "fp16":
                data = to_fp16(fp32)
            elif precision == "int8-dynamic":
                data = to_dynamic(fp32, scheme, options)
            else:
                data = self.quantise(fp32, options)
        interpreter = _opened(data, precision)
        for_litert = precision == "int8-dynamic" and scheme == "full"
        return Conversion(
            files={"": data},
            input=TensorSpec(
                name=interpreter.get_input_details()[0]["name"],
                dtype="uint8",
                layout="nhwc",
                dynamic_batch=_resizes(interpreter, graph.preprocess.size),
            ),
            output=interpreter.get_output_details()[0]["name"],
            recipe=recipe,
            min_runtime="LiteRT 1.0 (TensorFlow Lite 2.17)" if for_litert else "TensorFlow Lite 2.14",
        )

    def layers(self, fp32: bytes) -> tuple[str, ...]:
        return tuple(layers_of(read_operators(fp32)))

    def quantise(self, fp32: bytes, options: ExportOptions) -> bytes:
        options.pictures(_size(fp32))
        data = to_static(fp32, options)
        try:
            _opened(data, "int8")
        except ExportError as error:
            layer, most = faintest_layer(fp32, options)
            if most > _FAINT:
                raise
            raise ExportError(
                f"{error}. On the calibration pictures layer {layer!r} gives at most {most:.1e}, too little for int8: train "
                "the model to its end, or export another precision"
            ) from None
        return data


def dynamic_scheme(min_litert: str) -> DynamicScheme:
    """How dynamic int8 is made for the oldest runtime that is to run it.

    Args:
        min_litert: in TensorFlow's numbering, e.g. ``"2.14"``; LiteRT 1.0 is 2.17.

    Raises:
        ConfigError: no version, or older than what artifacts are made for.
    """
    parts = min_litert.split(".")
    if not 2 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"min_litert = {min_litert!r} is no version of TensorFlow Lite; give one such as 2.14")
    wanted = (int(parts[0]), int(parts[1]))
    if wanted < _OLDEST:
        raise ConfigError(
            f"min_litert = {min_litert}: artifacts are made for TensorFlow Lite 2.14 and newer; give 2.14, or 2.17 for LiteRT "
            "only (versions are TensorFlow's: LiteRT 1.0 and newer is 2.17)"
        )
    return "full" if wanted >= _LITERT else "safe"


def _converted(graph: DeviceGraph) -> bytes:
    """The graph as an fp32 artifact."""
    try:
        import litert_torch
    except ImportError:
        raise MissingExtraError("export", "exporting to TFLite") from None
    nhwc = graph.with_layout("nhwc")
    tensors = _digest(nhwc)
    known = _CONVERTED.get(graph)
    if known is not None and known[0] == tensors:
        return known[1]
    model = litert_torch.convert(nhwc, (nhwc.example(1, torch.uint8),))
    with tempfile.TemporaryDirectory(prefix="samespace-tflite-") as folder:
        path = Path(folder) / "model.tflite"
        model.export(str(path))
        data = path.read_bytes()
    _CONVERTED[graph] = (tensors, data)
    return data


def _digest(graph: DeviceGraph) -> str:
    # A graph may have been trained on since.
    state = hashlib.sha256(repr(graph).encode())
    for name, tensor in graph.state_dict().items():
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def _opened(data: bytes, precision: str) -> Any:
    """An interpreter that has taken the artifact's memory.

    Raises:
        ExportError: LiteRT refuses what was made.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter: Any = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"LiteRT refuses the tflite-{precision} artifact: {reason}") from error
    return interpreter


def _size(fp32: bytes) -> int:
    """Edge of the square input."""
    return int(_opened(fp32, "fp32").get_input_details()[0]["shape"][1])


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
