"""Ranges of activations on calibration pictures: the extremes of every tensor of a float TFLite graph.

ai-edge-quantizer's own calibrator takes some 40 ms a picture, and its default is a moving average, which clips. The extremes of
what the interpreter computed are all that is needed, and they hold for every choice of float layers.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.export.formats.tflite_graph import read_operators
from samespace.sdk.identity import digest

__all__ = ["Ranges", "activation_ranges"]

#: Name of a tensor -> its least and its largest value.
Ranges = dict[str, tuple[float, float]]

#: The last few results: a search for float layers quantises the same model with the same pictures many times.
_KNOWN: OrderedDict[tuple[str, str], Ranges] = OrderedDict()
_KEPT = 4


def activation_ranges(model: bytes, pictures: npt.NDArray[np.uint8]) -> Ranges:
    """Run a float graph and note the extremes of all that its operators compute in float.

    Args:
        model: a ``.tflite`` file with one uint8 NHWC input.
        pictures: ``(n, size, size, 3)`` uint8, n > 0, of the model's size.
    """
    key = (digest(model), digest(np.ascontiguousarray(pictures).tobytes()))
    if key not in _KNOWN:
        _KNOWN[key] = _measure(model, pictures)
        while len(_KNOWN) > _KEPT:
            _KNOWN.popitem(last=False)
    return _KNOWN[key]


def _measure(model: bytes, pictures: npt.NDArray[np.uint8]) -> Ranges:
    from ai_edge_litert.interpreter import Interpreter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that keeping all tensors takes memory
        interpreter: Any = Interpreter(model_content=model, num_threads=1, experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    entrance = interpreter.get_input_details()[0]["index"]
    computed = {name for operator in read_operators(model) for name in operator.outputs}
    details = interpreter.get_tensor_details()
    tensors = [(item["name"], item["index"]) for item in details if item["name"] in computed and item["dtype"] is np.float32]
    ranges: Ranges = {}
    # One at a time, as the quantiser's calibrator does it: a batch may be summed in another order.
    for picture in pictures:
        interpreter.set_tensor(entrance, picture[None])
        interpreter.invoke()
        for name, index in tensors:
            values = interpreter.get_tensor(index)
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))
    return ranges
