"""TFLite in lower precisions, by ai-edge-quantizer: fp16 weights, dynamic int8, static int8.

The quantiser goes through a list of rules, each a pattern of operators' output names with what to do to them; the last one that
fits an operator counts.

- ``fp16``: weights are stored in fp16 and dequantised when the model is loaded; arithmetic stays in float.
- ``int8-dynamic``: weights in int8; activations are coded on the device, picture by picture.
- ``int8``: weights and activations in int8, with ranges from calibration pictures (min-max). What stands around the network
  stays in float: the input is uint8 all the same, and the norm would lose the most (and 2.14 refuses INT8 SQRT).

tflite-runtime 2.14 takes the scale of a dynamic FULLY_CONNECTED's first output for all of them: the embeddings are garbage, and
nothing warns. For runtimes that old such a weight gets one scale.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from samespace.export.formats.tflite_compact import compact
from samespace.export.formats.tflite_graph import Operator, layers_of, outside, read_operators
from samespace.export.formats.tflite_ranges import activation_ranges
from samespace.export.options import ExportOptions
from samespace.sdk.errors import ConfigError, MissingExtraError

__all__ = ["DynamicScheme", "faintest_layer", "quantiser_recipe", "to_dynamic", "to_fp16", "to_static"]

#: ``safe``: runs in tflite-runtime 2.14, too. ``full``: all that the quantiser can do, for LiteRT.
DynamicScheme = Literal["safe", "full"]


def to_fp16(fp32: bytes) -> bytes:
    """The artifact with its weights in fp16."""
    quantizer, names, granularity = _quantizer(fp32)
    quantizer.add_weight_only_config(
        ".*", names.ALL_SUPPORTED, 16, granularity.TENSORWISE, algorithm_key=_algorithms().FLOAT_CASTING
    )
    return _finish(quantizer)


def to_dynamic(fp32: bytes, scheme: DynamicScheme, options: ExportOptions) -> bytes:
    """The artifact with its weights in int8; ``options.float_layers`` stay in float.

    Raises:
        ConfigError: an unknown layer.
    """
    quantizer, names, granularity = _quantizer(fp32)
    if scheme == "full":
        quantizer.add_dynamic_config(".*", names.ALL_SUPPORTED, 8)
    else:
        quantizer.add_dynamic_config(".*", names.CONV_2D, 8)
        quantizer.add_dynamic_config(".*", names.DEPTHWISE_CONV_2D, 8)
        quantizer.add_dynamic_config(".*", names.FULLY_CONNECTED, 8, granularity.TENSORWISE)
    _leave(quantizer, names, _chosen(read_operators(fp32), options.float_layers))
    return _finish(quantizer)


def to_static(fp32: bytes, options: ExportOptions) -> bytes:
    """The artifact in static int8; ``options.float_layers`` and what stands around the network stay in float.

    Args:
        fp32: with a uint8 input.
        options: with calibration pictures of the model's size.

    Raises:
        ConfigError: an unknown layer.
        ExportError: the graph has no L2 norm at its end.
    """
    assert options.calibration is not None
    quantizer, names, _ = _quantizer(fp32)
    operators = read_operators(fp32)
    quantizer.add_static_config(".*", names.ALL_SUPPORTED, 8, 8)
    _leave(quantizer, names, [*outside(operators), *_chosen(operators, options.float_layers)])
    for end in (names.INPUT, names.OUTPUT):
        quantizer.update_quantization_recipe(".*", end, algorithm_key=_algorithms().NO_QUANTIZE)
    ranges = activation_ranges(fp32, options.calibration)
    return _finish(
        quantizer,
        {
            name: {"min": np.array([[[[low]]]], np.float32), "max": np.array([[[[high]]]], np.float32)}
            for name, (low, high) in ranges.items()
        },
    )


def faintest_layer(fp32: bytes, options: ExportOptions) -> tuple[str, float]:
    """The layer with the smallest activations on the calibration pictures, and the largest absolute value of them."""
    assert options.calibration is not None
    ranges = activation_ranges(fp32, options.calibration)
    most = {
        name: max(abs(edge) for edge in ranges[layer.outputs[0]]) for name, layer in layers_of(read_operators(fp32)).items()
    }
    return min(most.items(), key=lambda item: item[1])


def quantiser_recipe(precision: str, options: ExportOptions, scheme: DynamicScheme = "safe") -> dict[str, Any]:
    """What a manifest says about how a precision was made."""
    about: dict[str, Any] = {"quantiser": "ai-edge-quantizer", "ai-edge-quantizer": version("ai-edge-quantizer")}
    if precision == "fp16":
        return about | {"scheme": "fp16 weights, float arithmetic"}
    about["float_layers"] = list(options.float_layers)
    if precision == "int8-dynamic":
        fully = "per channel" if scheme == "full" else "per tensor"
        return about | {"scheme": f"int8 weights per channel, FULLY_CONNECTED {fully}", "min_litert": options.min_litert}
    return about | {
        "scheme": "int8 activations, int8 weights per channel",
        "ranges": "min-max",
        "calibration": 0 if options.calibration is None else len(options.calibration),
    }


def _chosen(operators: tuple[Operator, ...], float_layers: tuple[str, ...]) -> list[Operator]:
    layers = layers_of(operators)
    for name in float_layers:
        if name not in layers:
            raise ConfigError(f"float_layers: the TFLite graph has no layer {name!r}; there are: {', '.join(layers)}")
    return [layers[name] for name in float_layers]


def _quantizer(fp32: bytes) -> tuple[Any, Any, Any]:
    """A quantiser for the bytes, and its names of operators and granularities."""
    try:
        from ai_edge_quantizer import qtyping, quantizer
    except ImportError:
        raise MissingExtraError("export", "quantising TFLite artifacts") from None
    return quantizer.Quantizer(fp32), qtyping.TFLOperationName, qtyping.QuantGranularity


def _algorithms() -> Any:
    from ai_edge_quantizer.quantizer import AlgorithmName

    return AlgorithmName


def _leave(quantizer: Any, names: Any, operators: Iterable[Operator]) -> None:
    """Add rules that leave these operators, and no others, in float."""
    for operator in operators:
        quantizer.update_quantization_recipe(
            f"^{re.escape(operator.scope)}$", names.ALL_SUPPORTED, algorithm_key=_algorithms().NO_QUANTIZE
        )


def _finish(quantizer: Any, ranges: Any = None) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that an interpreter which keeps all tensors takes memory
        result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return compact(bytes(result.quantized_model))
