"""A network's first-order expansion as one explicit graph of plain layers, so that it runs on any device.

Two streams go through it, values x and tangents x' (LQF, Achille et al., CVPR 2021, arXiv 2012.11140, eq. 2): a layer gives
``W x + b`` and ``dW x + db + W x'``, an activation ``f(x)`` and ``f'(x) x'``. Nothing is computed twice before the first layer
that changes. Values of a device are those of ``torch.func.jvp`` then, which devices do not have.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from samespace.edge.models.head import L2Norm
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError

__all__ = ["SUPPORTED", "build", "two_streams"]

#: Layers without parameters, through which a tangent goes as a value does.
_LINEAR = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)
_METHODS = ("mean", "permute", "flatten", "reshape", "view", "transpose", "contiguous", "sum")
_FUNCTIONS = (torch.flatten, torch.mean, torch.permute, torch.transpose)
_ADDITIONS = (operator.add, operator.iadd, torch.add)


def _above(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


#: Activation -> its derivative.
_SLOPES: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.ReLU: lambda layer, x: _above(x),
    nn.ReLU6: lambda layer, x: _above(x) * _above(6 - x),
    nn.LeakyReLU: lambda layer, x: layer.negative_slope + (1 - layer.negative_slope) * _above(x),
    nn.Sigmoid: lambda layer, x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    nn.Tanh: lambda layer, x: 1 - torch.tanh(x) ** 2,
    nn.SiLU: lambda layer, x: torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x))),
    nn.Hardswish: lambda layer, x: _above(x + 3) * (_above(3 - x) * (2 * x + 3) / 6 + _above(x - 3)),
    nn.Hardsigmoid: lambda layer, x: _above(x + 3) * _above(3 - x) / 6,
}

#: Names of the layers that a two-stream graph can be made of.
SUPPORTED = tuple(sorted({layer.__name__ for layer in (nn.Conv2d, nn.Linear, nn.BatchNorm2d, *_SLOPES, *_LINEAR)}))


class _Pair(nn.Module):
    """A layer that takes ``(x, x')`` and gives ``(y, y')``; ``x'`` may be None, and so may ``y'``."""

    def __init__(self, layer: nn.Module, trained: bool) -> None:
        super().__init__()
        self.layer, self.trained = layer, trained
        if trained:
            for name, value in layer.named_parameters():
                self.register_buffer(f"delta_{name}", torch.zeros_like(value))

    def change(self, name: str) -> Tensor | None:
        return getattr(self, f"delta_{name}", None)

    def forward(self, x: Tensor, tangent: Tensor | None) -> tuple[Tensor, Tensor | None]:
        layer, y = self.layer, self.layer(x)
        if isinstance(layer, _LINEAR):
            return y, None if tangent is None else layer(tangent)
        if slope := _SLOPES.get(type(layer)):
            return y, None if tangent is None else slope(layer, x) * tangent
        if isinstance(layer, nn.BatchNorm2d):
            return y, self._norm(layer, x, tangent)
        parts = [] if tangent is None else [_times(layer, tangent, cast(Tensor, layer.weight), None)]
        if (weight := self.change("weight")) is not None:
            parts.append(_times(layer, x, weight, self.change("bias")))
        return y, sum(parts[1:], parts[0]) if parts else None

    def _norm(self, layer: nn.BatchNorm2d, x: Tensor, tangent: Tensor | None) -> Tensor | None:
        scale = torch.rsqrt(cast(Tensor, layer.running_var) + layer.eps)
        parts = [] if tangent is None else [tangent * _wide(scale * layer.weight)]
        if (weight := self.change("weight")) is not None:
            shift = cast(Tensor, self.change("bias")) - weight * scale * cast(Tensor, layer.running_mean)
            parts.append(x * _wide(weight * scale) + _wide(shift))
        return sum(parts[1:], parts[0]) if parts else None


class _Embedding(nn.Module):
    """``e + J_norm(f) f'``: the norm of an embedding has a tangent too; the one that follows in a bundle keeps directions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = L2Norm()

    def forward(self, x: Tensor, tangent: Tensor) -> Tensor:
        largest = x.abs().amax(1, keepdim=True) + 1e-6
        x, tangent = x / largest, tangent / largest
        inverse = torch.rsqrt((x * x).sum(1, keepdim=True) + self.norm.eps)
        unit = x * inverse
        along = tangent * inverse
        return unit + along - unit * (unit * along).sum(1, keepdim=True)


def two_streams(network: nn.Module, trained: Collection[str]) -> fx.GraphModule:
    """``(n, ...)`` -> ``(n, d)``: the unit embedding and its first-order change, added.

    Args:
        network: traceable by ``torch.fx``, of :data:`SUPPORTED` layers; evaluated as it stands.
        trained: names of parameters or of modules that hold them. All parameters of a layer change, or none.

    Returns:
        with the network's weights as ``layers.NAME.layer.*`` and the changes, all 0, as ``layers.NAME.delta_*``; NAME is the
        layer's path with ``/`` for dots.

    Raises:
        ConfigError: a layer or an operation that has no tangent here, by its name; or nothing changes.
    """
    try:
        traced = fx.Tracer().trace(network.eval())
    except Exception as error:  # whatever the network's code does with what is no tensor yet
        raise ConfigError(f"torch.fx cannot trace this network, so that no explicit graph can be made of it: {error}") from None
    layers, graph = nn.ModuleDict(), fx.Graph()
    streams: dict[fx.Node, tuple[fx.Node, fx.Node | None]] = {}
    for node in traced.nodes:
        if node.op == "placeholder":
            streams[node] = (graph.placeholder("x"), None)
        elif node.op == "call_module":
            path = str(node.target)
            layer, (source,) = network.get_submodule(path), node.args
            pair = _Pair(_supported(path, layer), _changes(path, layer, trained))
            layers[path.replace(".", "/")] = pair
            both = graph.call_module(f"layers.{path.replace('.', '/')}", streams[cast(fx.Node, source)])
            moves = streams[cast(fx.Node, source)][1] is not None or pair.trained
            value = graph.call_function(operator.getitem, (both, 0))
            streams[node] = value, graph.call_function(operator.getitem, (both, 1)) if moves else None
        elif node.op == "output":
            value, tangent = streams[cast(fx.Node, node.args[0])]
            if tangent is None:
                raise ConfigError(f"nothing that is trained reaches the embedding: {', '.join(trained)}")
            graph.output(graph.call_module("embedding", (value, tangent)))
        else:
            streams[node] = _operation(graph, node, streams)
    root = nn.Module()
    root.layers, root.embedding = layers, _Embedding()
    return fx.GraphModule(root, graph, "Linearised")


def build(*, dim: int, image_size: int, family: str, arguments: dict[str, Any], trained: list[str]) -> nn.Module:
    """A linearised model; ``samespace finetune apply --linearised`` makes its records.

    Args:
        dim: of the base.
        image_size: of the base.
        family: of the base.
        arguments: of the base.
        trained: modules or parameters whose change it holds.

    Raises:
        ConfigError: arguments that cannot work.
    """
    base = build_model(family, {**arguments, "dim": dim, "image_size": image_size}, weights_follow=True)
    return two_streams(base, trained)


def _supported(path: str, layer: nn.Module) -> nn.Module:
    known = (*_LINEAR, *_SLOPES, nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    if type(layer) not in known:
        raise ConfigError(f"{path}: no tangent of {type(layer).__name__} is known here; known are {', '.join(SUPPORTED)}")
    if isinstance(layer, nn.BatchNorm2d) and (layer.running_mean is None or layer.weight is None):
        raise ConfigError(f"{path}: a batch norm without statistics or weights has no tangent here")
    return layer


def _changes(path: str, layer: nn.Module, trained: Collection[str]) -> bool:
    names = [f"{path}.{name}" for name, _ in layer.named_parameters()]
    chosen = [any(name == one or name.startswith(f"{one}.") for one in trained) for name in names]
    if any(chosen) and not all(chosen):
        raise ConfigError(f"{path}: only some of its parameters change; name the layer")
    return any(chosen)


def _operation(graph: fx.Graph, node: fx.Node, streams: dict[fx.Node, tuple[fx.Node, fx.Node | None]]) -> Any:
    if node.op == "call_function" and node.target in _ADDITIONS:
        (a, da), (b, db) = (streams[cast(fx.Node, side)] for side in node.args[:2])
        tangents = [one for one in (da, db) if one is not None]
        both = graph.call_function(operator.add, tuple(tangents)) if len(tangents) == 2 else next(iter(tangents), None)
        return graph.call_function(operator.add, (a, b)), both
    linear = node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS)
    if not linear:
        name = getattr(node.target, "__name__", str(node.target))
        raise ConfigError(f"{name}: this operation has no tangent here; write it as a layer, or leave it out")
    value, tangent = streams[cast(fx.Node, node.args[0])]

    def same(of: fx.Node) -> fx.Node:
        return graph.create_node(node.op, node.target, (of, *node.args[1:]), dict(node.kwargs))

    return same(value), None if tangent is None else same(tangent)


def _times(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return cast(nn.Conv2d, layer)._conv_forward(x, weight, bias) if isinstance(layer, nn.Conv2d) else F.linear(x, weight, bias)


def _wide(channels: Tensor) -> Tensor:
    return channels[None, :, None, None]
