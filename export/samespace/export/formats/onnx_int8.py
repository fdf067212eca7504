"""ONNX in static int8, by onnxruntime's quantiser: QDQ, per channel, ranges from the extremes on real pictures.

Activations are uint8 and weights int8 of 7 bits (``reduce_range``). x86 CPUs without VNNI add two products uint8 x int8 in 16
bits, which saturate beyond 32767; 255 * 64 * 2 does not reach it, 255 * 127 * 2 does. ARM and VNNI lose nothing by it but
half a bit of the weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samespace.export.formats.onnx_float_layers import keep_weights_in_float, nodes_in_float
from samespace.export.formats.onnx_graph import strip
from samespace.export.options import ExportOptions
from samespace.sdk.runtimes.onnx import load_onnxruntime

__all__ = ["Scheme", "int8_recipe", "to_int8"]

#: Pictures at once while ranges are measured; all results of the graph are held for them.
_BATCH = 16


@dataclass(frozen=True)
class Scheme:
    """How numbers are coded; the default is the one that is safe on every CPU.

    Attributes:
        activations: ``uint8`` with a zero point, or ``int8`` around 0.
        reduce_range: weights of 7 bits instead of 8.
        per_channel: weights with a scale for each output channel.
    """

    activations: Literal["uint8", "int8"] = "uint8"
    reduce_range: bool = True
    per_channel: bool = True


def to_int8(model: Any, options: ExportOptions, scheme: Scheme = Scheme()) -> Any:
    """The fp32 ModelProto, with our names of nodes, as a new one in static int8.

    Args:
        model: from :class:`~samespace.export.formats.onnx.OnnxExporter`.
        options: with calibration pictures; ``float_layers`` stay in float, and the scaling of the pixels and what follows the
            last layer always do.
        scheme: other schemes are for trials.

    Raises:
        ConfigError: no calibration pictures, or of another size than the graph takes, or an unknown layer.
    """
    pictures = options.pictures(_side(model))
    excluded = nodes_in_float(model, options.float_layers)
    load_onnxruntime()
    import onnx
    from onnxruntime import quantization as ortq

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with tempfile.TemporaryDirectory(prefix="samespace-int8-") as folder:
        target = Path(folder) / "model.onnx"
        ortq.quantize_static(
            copied,
            target,
            _reader(pictures, model.graph.input[0].name),
            quant_format=ortq.QuantFormat.QDQ,
            activation_type=ortq.QuantType.QUInt8 if scheme.activations == "uint8" else ortq.QuantType.QInt8,
            weight_type=ortq.QuantType.QInt8,
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            nodes_to_exclude=excluded,
            calibrate_method=ortq.CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": scheme.activations == "int8"},
        )
        quantised = onnx.load(str(target))
    keep_weights_in_float(quantised, options.float_layers)
    strip(quantised)
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(quantised)
    return quantised


def int8_recipe(options: ExportOptions) -> dict[str, Any]:
    """What a manifest says about :func:`to_int8` in the default scheme."""
    return {
        "quantiser": "onnxruntime quantize_static QDQ",
        "onnxruntime": load_onnxruntime().__version__,
        "scheme": "uint8 activations, int8 weights per channel",
        "reduce_range": True,
        "ranges": "min-max",
        "calibration": 0 if options.calibration is None else len(options.calibration),
        "float_layers": list(options.float_layers),
    }


def _reader(pictures: npt.NDArray[np.uint8], name: str) -> Any:
    """The pictures in batches, as onnxruntime's quantiser wants them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[npt.NDArray[np.uint8]] = (
                pictures[start : start + _BATCH] for start in range(0, len(pictures), _BATCH)
            )

        def get_next(self) -> Any:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch}

    return Reader()


def _side(model: Any) -> int:
    return model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
