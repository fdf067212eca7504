"""MIL operators that work element by element: arithmetic, activations, comparisons, casts and quantisation."""

from __future__ import annotations

import numpy as np

from samespace.sdk.runtimes.mil.decompress import along_axis
from samespace.sdk.runtimes.mil.graph import Call, Translator, UnsupportedError, onnx_type

__all__ = ["OPERATORS"]

#: MIL name -> ONNX name, where the meaning is the same.
_UNARY = {
    "abs": "Abs", "ceil": "Ceil", "cos": "Cos", "erf": "Erf", "exp": "Exp", "floor": "Floor", "identity": "Identity",
    "logical_not": "Not", "relu": "Relu", "round": "Round", "sigmoid": "Sigmoid", "sign": "Sign", "sin": "Sin",
    "softplus": "Softplus", "softsign": "Softsign", "sqrt": "Sqrt", "tanh": "Tanh",
}  # fmt: skip
_BINARY = {
    "add": "Add", "equal": "Equal", "greater": "Greater", "greater_equal": "GreaterOrEqual", "less": "Less",
    "less_equal": "LessOrEqual", "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor", "maximum": "Max",
    "minimum": "Min", "mul": "Mul", "pow": "Pow", "real_div": "Div", "sub": "Sub",
}  # fmt: skip


def _unary(onnx_name: str) -> Translator:
    return lambda call: call.add(onnx_name, call.tensor())


def _binary(onnx_name: str) -> Translator:
    return lambda call: call.add(onnx_name, call.tensor("x"), call.tensor("y"))


def _with_epsilon(onnx_names: tuple[str, ...], default: float) -> Translator:
    """``f(x + epsilon)``."""

    def translate(call: Call) -> str:
        y = call.add("Add", call.tensor(), call.graph.array(call.number("epsilon", default)))
        for name in onnx_names:
            y = call.add(name, y)
        return y

    return translate


def _clip(call: Call, low: float, high: float) -> str:
    return call.add("Clip", call.tensor(), call.graph.array(low), call.graph.array(high))


def _gelu(call: Call) -> str:
    mode = str(call.constant("mode", "EXACT"))
    if mode == "SIGMOID_APPROXIMATION":
        gate = call.add("Sigmoid", call.add("Mul", call.tensor(), call.graph.array(1.702)))
        return call.add("Mul", call.tensor(), gate)
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise UnsupportedError(f"{call}: mode {mode!r} is not supported")
    return call.add("Gelu", call.tensor(), approximate="none" if mode == "EXACT" else "tanh")


def _thresholded_relu(call: Call) -> str:
    # x >= alpha, where ONNX's ThresholdedRelu has x > alpha.
    keep = call.add("GreaterOrEqual", call.tensor(), call.graph.array(call.number("alpha", 1.0)))
    return call.add("Where", keep, call.tensor(), call.graph.array(0.0))


def _clamped_relu(call: Call) -> str:
    leaky = call.add("LeakyRelu", call.tensor(), alpha=call.number("alpha", 1.0))
    return call.add("Min", leaky, call.graph.array(call.number("beta", 1.0)))


def _linear_activation(call: Call) -> str:
    scaled = call.add("Mul", call.tensor(), call.graph.array(call.number("alpha", 1.0)))
    return call.add("Add", scaled, call.graph.array(call.number("beta", 0.0)))


def _scaled_tanh(call: Call) -> str:
    inner = call.add("Tanh", call.add("Mul", call.tensor(), call.graph.array(call.number("beta", 1.0))))
    return call.add("Mul", inner, call.graph.array(call.number("alpha", 1.0)))


def _prelu(call: Call) -> str:
    slope = along_axis(np.asarray(call.constant("alpha")), 1, call.rank())
    return call.add("PRelu", call.tensor(), call.graph.array(slope[0] if slope.ndim > 1 else slope))


def _silu(call: Call) -> str:
    return call.add("Mul", call.tensor(), call.add("Sigmoid", call.tensor()))


def _square(call: Call) -> str:
    return call.add("Mul", call.tensor(), call.tensor())


def _select(call: Call) -> str:
    return call.add("Where", call.tensor("cond"), call.tensor("a"), call.tensor("b"))


def _cast(call: Call) -> str:
    return call.add("Cast", call.tensor(), to=onnx_type(str(call.constant("dtype"))))


def _quantize(call: Call) -> str:
    """``clip(round(x / scale) + zero_point)``. Not ONNX's QuantizeLinear: onnxruntime would fuse it into integer kernels."""
    scale, zero = _affine(call, "input")
    low, high = (0, 255) if str(call.constant("output_dtype")) == "uint8" else (-128, 127)
    rounded = call.add("Round", call.add("Div", call.tensor("input"), scale))
    clipped = call.add("Clip", call.add("Add", rounded, zero), call.graph.array(low), call.graph.array(high))
    return call.add("Cast", clipped, to=onnx_type("int8"))


def _dequantize(call: Call) -> str:
    scale, zero = _affine(call, "input")
    values = call.add("Cast", call.tensor("input"), to=onnx_type("fp32"))
    return call.add("Mul", call.add("Sub", values, zero), scale)


def _affine(call: Call, parameter: str) -> tuple[str, str]:
    axis = call.integer("axis", 0) if call.has("axis") else None
    scale = np.asarray(call.constant("scale"), np.float32)
    zero = np.broadcast_to(np.asarray(call.constant("zero_point", 0), np.float32), scale.shape)
    rank = call.rank(parameter)
    return call.graph.array(along_axis(scale, axis, rank)), call.graph.array(along_axis(zero, axis, rank))


OPERATORS: dict[str, Translator] = {
    **{mil: _unary(name) for mil, name in _UNARY.items()},
    **{mil: _binary(name) for mil, name in _BINARY.items()},
    "cast": _cast,
    "clamped_relu": _clamped_relu,
    "clip": lambda call: _clip(call, call.number("alpha", 0.0), call.number("beta", 1.0)),
    "dequantize": _dequantize,
    "elu": lambda call: call.add("Elu", call.tensor(), alpha=call.number("alpha", 1.0)),
    "gelu": _gelu,
    "inverse": _with_epsilon(("Reciprocal",), 1e-4),
    "leaky_relu": lambda call: call.add("LeakyRelu", call.tensor(), alpha=call.number("alpha", 0.01)),
    "linear_activation": _linear_activation,
    "log": _with_epsilon(("Log",), 1e-45),
    "prelu": _prelu,
    "quantize": _quantize,
    "relu6": lambda call: _clip(call, 0.0, 6.0),
    "rsqrt": _with_epsilon(("Sqrt", "Reciprocal"), 1e-12),
    "scaled_tanh": _scaled_tanh,
    "select": _select,
    "sigmoid_hard": lambda call: call.add(
        "HardSigmoid", call.tensor(), alpha=call.number("alpha", 0.2), beta=call.number("beta", 0.5)
    ),
    "silu": _silu,
    "square": _square,
    "thresholded_relu": _thresholded_relu,
}
