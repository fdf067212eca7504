"""A network that computes as its int8 artifact will, in float and with gradients: for quantisation-aware training.

Weights are symmetric and per output channel, activations asymmetric and per tensor: what ONNX's QDQ, TFLite and XNNPACK have.
Batch norms are folded into the convolutions before them, with the running statistics that they have. Rounding lets gradients
through unchanged, and clipping stops them: the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) as in Jacob et
al., CVPR 2018, arXiv 1712.05877.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from samespace.sdk.errors import ConfigError

__all__ = ["ActivationRange", "FakeQuantised", "fake_quantise_weight"]

_TINY = float(torch.finfo(torch.float32).tiny)
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
_WEIGHTED_FUNCTIONS = (F.conv1d, F.conv2d, F.linear)
#: A runtime clips while it writes the result of the operator before: what is quantised is what comes out of these.
_FUSED = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
_FUSED_FUNCTIONS = ("relu", "relu6", "hardtanh", "clamp", "relu_")
#: Whose output holds values of their input only.
_KEEPING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.ZeroPad2d, nn.MaxPool2d)
_KEEPING_FUNCTIONS = (
    *("permute", "transpose", "reshape", "view", "flatten", "contiguous", "squeeze", "unsqueeze", "pad", "dropout"),
    *("getattr", "getitem", "size"),
)


class FakeQuantised(nn.Module):
    """A network as int8 computes it; its parameters are those of the network, and learn in its place.

    The network stays in evaluation mode, in training too: running statistics stand still, and there is no dropout. Ranges of
    activations come from :meth:`calibrate`; in training mode they follow the batches by a moving average, if at all.

    In training, the last pictures of a batch may go through the float network instead: else the float model drifts away from
    what its int8 artifact computes, and from the gallery. (Fan et al., ICLR 2021, arXiv 2004.07320, round some weights only.)

    Args:
        network: of plain layers, traceable by ``torch.fx``; takes and gives one tensor, without scaling and L2 norm.
        weight_bits: 2 to 8. ONNX artifacts keep 7 of the 8 (``reduce_range``), for CPUs that would saturate.
        activation_bits: 2 to 8.
        momentum: how far a training batch moves the ranges towards its own, in [0, 1); 0 leaves them as calibrated.
        float_share: of the pictures of a training batch, in [0, 1).

    Attributes:
        network: as given; its state dictionary is that of the float model.
        ranges: of the input and of every operator's result, by the operator's name in the traced graph.

    Raises:
        ConfigError: a network that cannot be traced.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        weight_bits: int = 8,
        activation_bits: int = 8,
        momentum: float = 0.0,
        float_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.network = network.eval()
        self.weight_bits, self.activation_bits, self.float_share = weight_bits, activation_bits, float_share
        self._graph = _traced(network)
        modules = dict(network.named_modules())
        self._folded = _folded(self._graph, modules)
        self._norms = {norm: str(self._node(norm).target) for norm in self._folded.values()}
        points = _quantised_points(self._graph, modules, self._folded)
        self.ranges = nn.ModuleDict({point: ActivationRange(activation_bits, momentum) for point in points})
        self._calibrated = False

    def train(self, mode: bool = True) -> "FakeQuantised":
        """As usual, but the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Set all ranges anew: the least and the greatest values of these batches in the float network.

        Args:
            batches: as ``forward`` takes them, one at least.
        """
        for one in self._ranges().values():
            one.forget()
        with torch.no_grad():
            for batch in batches:
                _Run(self, observe=True).run(batch)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, 3, s, s)`` float32 -> ``(n, dim)`` float32.

        Raises:
            RuntimeError: ranges that were never calibrated.
        """
        if not self._calibrated:
            self._calibrated = any(one.known for one in self._ranges().values())
            if not self._calibrated:
                raise RuntimeError("FakeQuantised: call calibrate() with pictures first, or load a state with ranges")
        rounded = len(x) - int(self.float_share * len(x)) if self.training else len(x)
        result = _Run(self, observe=False).run(x[:rounded])
        return result if rounded == len(x) else torch.cat([result, self.network(x[rounded:])])

    def _node(self, name: str) -> fx.Node:
        return next(node for node in self._graph.nodes if node.name == name)

    def _ranges(self) -> dict[str, "ActivationRange"]:
        return {name: cast(ActivationRange, one) for name, one in self.ranges.items()}


class ActivationRange(nn.Module):
    """Fake quantisation of one tensor to unsigned integers, zero being one of them.

    ``scale = (high - low) / (2**bits - 1)``, ``zero = round(-low / scale)``, and x becomes
    ``(clip(round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale``, ties rounded to even; low <= 0 <= high.

    Args:
        bits: 2 to 8.
        momentum: see :class:`FakeQuantised`.
    """

    low: Tensor
    high: Tensor

    def __init__(self, bits: int = 8, momentum: float = 0.0) -> None:
        super().__init__()
        self.top, self.momentum = 2**bits - 1, momentum
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.forget()

    @property
    def known(self) -> bool:
        """Whether a value was ever observed."""
        return bool(self.low <= self.high)

    def forget(self) -> None:
        """Before the first value."""
        self.low.fill_(float("inf"))
        self.high.fill_(float("-inf"))

    def observe(self, x: Tensor) -> None:
        """Widen the range to hold all of x."""
        least, most = torch.aminmax(x.detach())
        self.low.copy_(torch.minimum(self.low, least))
        self.high.copy_(torch.maximum(self.high, most))

    def quantisation(self) -> tuple[Tensor, Tensor]:
        """Scale (float32) and zero point (int32), scalars."""
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        scale = ((high - low) / self.top).clamp(min=_TINY)
        return scale, torch.round(-low / scale).to(torch.int32)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.momentum:
            with torch.no_grad():
                least, most = torch.aminmax(x)
                self.low.lerp_(least, self.momentum)
                self.high.lerp_(most, self.momentum)
        scale, zero = self.quantisation()
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, self.top)


def fake_quantise_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """Each output channel (axis 0) on its own grid ``k * max|w| / (2**(bits - 1) - 1)``, k an integer; gradients go through."""
    top = 2 ** (bits - 1) - 1
    with torch.no_grad():
        scale = (weight.abs().flatten(1).amax(1) / top).clamp(min=_TINY)
        zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -top, top)


class _Run(fx.Interpreter):
    """One pass through the traced graph: it observes the ranges of the float network, or quantises by them."""

    def __init__(self, owner: FakeQuantised, observe: bool) -> None:
        super().__init__(owner.network, graph=owner._graph)
        self._owner, self._observe = owner, observe
        self._ranges = owner._ranges()

    def run_node(self, n: fx.Node) -> Any:
        value = self._computed(n)
        if n.name not in self._ranges or not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if self._observe:
            self._ranges[n.name].observe(value)
            return value
        return self._ranges[n.name](value)

    def _computed(self, node: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.op == "call_module":
            if node.name in self._owner._norms:
                return args[0]
            module = self.fetch_attr(str(node.target))
            if isinstance(module, _WEIGHTED):
                return self._weighted(module, self._owner._folded.get(node.name), args[0])
        if node.op == "call_function" and node.target in _WEIGHTED_FUNCTIONS and len(args) > 1:
            args = (args[0], self._quantised(args[1]), *args[2:])
        return getattr(self, node.op)(node.target, args, kwargs)

    def _weighted(self, module: nn.Module, norm: str | None, x: Tensor) -> Tensor:
        layer = cast(nn.Conv2d, module)
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            weight, bias = _with_norm(weight, bias, cast(_BatchNorm, self.fetch_attr(self._owner._norms[norm])))
        weight = self._quantised(weight)
        return F.linear(x, weight, bias) if isinstance(module, nn.Linear) else layer._conv_forward(x, weight, bias)

    def _quantised(self, weight: Tensor) -> Tensor:
        return weight if self._observe else fake_quantise_weight(weight, self._owner.weight_bits)


def _with_norm(weight: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer and the batch norm behind it as one layer, by the running statistics."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    factor = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        factor = norm.weight * factor
    shift = -mean * factor if bias is None else (bias - mean) * factor
    if norm.bias is not None:
        shift = norm.bias + shift
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), shift


def _traced(network: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(network)
    except Exception as error:  # whatever the network's code does with what is no tensor yet
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"this network cannot be quantised in training: torch.fx cannot trace it ({reason}); "
            "write its forward() without branches on values or shapes"
        ) from None


def _folded(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Name of the layer's node -> name of the batch norm's that is folded into it."""
    found = {}
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], _WEIGHTED) or len(node.users) != 1:
            continue
        (user,) = node.users
        norm = modules[user.target] if user.op == "call_module" else None
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and user.args == (node,):
            found[node.name] = user.name
    return found


def _quantised_points(graph: fx.Graph, modules: dict[str, nn.Module], folded: dict[str, str]) -> list[str]:
    """Names of the nodes whose result an artifact holds as integers."""
    points = []
    for node in graph.nodes:
        if node.op in ("output", "get_attr") or node.name in folded:
            continue
        if _is(node, modules, _KEEPING, _KEEPING_FUNCTIONS):
            continue
        if len(node.users) == 1 and _is(next(iter(node.users)), modules, _FUSED, _FUSED_FUNCTIONS):
            continue
        points.append(node.name)
    return points


def _is(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[type[nn.Module], ...], names: tuple[str, ...]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) in kinds
    if node.op == "call_method":
        return node.target in names
    return node.op == "call_function" and getattr(node.target, "__name__", "") in names
