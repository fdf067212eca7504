"""The supernet: all architectures of a space in one set of weights, of which each takes a slice.

Single path, one shot (Guo et al., ECCV 2020, arXiv 1904.00420): every training step draws one architecture. Of a weight a
narrower network takes the first channels, and of a larger kernel the centre (as once-for-all does, Cai et al., ICLR 2020, arXiv
1908.09791, without its kernel transforms). Operators, and weights that fit one resolution only (stems, heads, mixers), are not
shared. There is one batch norm a place, sliced as well: its statistics are a blend of many architectures, so a candidate's must
be estimated anew before it is judged.
"""

import random
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call

from samespace.edge.models import mobile
from samespace.edge.models.blocks import StagedNet
from samespace.edge.models.head import EmbeddingHead
from samespace.edge.models.mobile_blocks import mobile_block, mobile_stem
from samespace.edge.search.architecture import Architecture
from samespace.edge.search.space import SearchSpace, parse_space

__all__ = ["Supernet", "build"]


def build(*, dim: int, image_size: int, **space: Any) -> "Supernet":
    """A freshly initialised supernet, the model family ``mobile_supernet``.

    Args:
        dim: of the embedding.
        image_size: edge of the square input in pixels.
        space: further fields of :class:`~samespace.edge.search.space.SearchSpace`.

    Raises:
        ConfigError: an unknown field, or a wrong value.
    """
    return Supernet(parse_space({"dim": dim, "image_size": image_size, **space}))


class Supernet(nn.Module):
    """``(n, 3, image_size, image_size)`` float32 -> ``(n, dim)`` float32, through one architecture.

    In training mode every call draws one from torch's global generator; parameters beside its path get no gradient (None, not
    zero). In evaluation mode it is :attr:`active`.

    Attributes:
        space: the search space.
        active: the architecture of evaluation mode, the largest at first; no part of the state dictionary.
    """

    def __init__(self, space: SearchSpace) -> None:
        super().__init__()
        self.space = space
        self.active = space.largest()
        width, channels = max(space.stem_widths), max(space.widths[-1])
        self.stems = nn.ModuleDict({str(stride): mobile_stem(width, stride, "relu") for stride in space.stem_strides})
        body = []
        for number, widths in enumerate(space.widths):
            body.append(nn.ModuleList(_place(space, number, index, width) for index in range(max(space.depths))))
            width = max(widths)
        self.body = nn.ModuleList(body)
        sides = [_side(space, stride, len(space.widths)) for stride in space.stem_strides]
        self.heads = nn.ModuleDict(
            {_head_key(space, side): EmbeddingHead(channels, side, space.dim, space.pooling) for side in sides}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_as(self.draw() if self.training else self.active, x)

    def forward_as(self, architecture: Architecture, x: torch.Tensor) -> torch.Tensor:
        """The same through a given architecture, in the mode that the supernet is in."""
        self.space.check(architecture)
        net = self._skeleton(architecture).train(self.training)
        return functional_call(net, self._slices(architecture, net), (x,))

    def draw(self) -> Architecture:
        """An architecture, :meth:`SearchSpace.sample` seeded by torch's global generator."""
        return self.space.sample(random.Random(int(torch.randint(2**62, ()).item())))

    def activate(self, architecture: Architecture) -> None:
        """Make it the architecture of evaluation mode.

        Raises:
            ConfigError: it is not in the space.
        """
        self.space.check(architecture)
        self.active = architecture

    def extract(self, architecture: Architecture) -> StagedNet:
        """A network of the family ``mobile`` with a copy of the architecture's slice, batch-norm statistics included.

        It computes what the supernet computes for this architecture, and shares nothing with it. It is in the supernet's mode
        and on its device.

        Raises:
            ConfigError: the architecture is not in the space.
        """
        self.space.check(architecture)
        net = self._skeleton(architecture)
        slices = self._slices(architecture, net)
        net.to_empty(device=next(self.parameters()).device).load_state_dict(slices)
        return net.train(self.training)

    def _skeleton(self, architecture: Architecture) -> StagedNet:
        """The network without weights; nothing is drawn from any generator."""
        with torch.device("meta"):
            return mobile.build(**architecture.arguments(self.space))

    def _slices(self, architecture: Architecture, net: StagedNet) -> dict[str, torch.Tensor]:
        """The state dictionary of ``net``, as views of the supernet's weights and statistics."""
        slices: dict[str, torch.Tensor] = {}
        for prefix, full in self._path(architecture):
            whole = {**dict(full.named_parameters()), **dict(full.named_buffers())}
            for name, value in net.get_submodule(prefix).state_dict().items():
                slices[f"{prefix}.{name}"] = _fit(whole[name], value.shape)
        return slices

    def _path(self, architecture: Architecture) -> Iterator[tuple[str, nn.Module]]:
        """Prefixes of the architecture's network, and the modules of the supernet that hold their weights."""
        stride = architecture.stem_stride
        yield "stem", self.stems[str(stride)]
        for number, blocks in enumerate(architecture.stages):
            side = _side(self.space, stride, number + 1)
            places = cast(nn.ModuleList, self.body[number])
            for index, block in enumerate(blocks):
                yield f"body.{number}.{index}", cast(nn.ModuleDict, places[index])[_key(block.op, side)]
        yield "head", self.heads[_head_key(self.space, _side(self.space, stride, len(architecture.stages)))]


def _place(space: SearchSpace, number: int, index: int, inputs: int) -> nn.ModuleDict:
    """All operators of one block of stage ``number``, at full size; ``inputs`` are the channels that come into the stage."""
    outputs = max(space.widths[number])
    first = index == 0
    modules: dict[str, nn.Module] = {}
    for op in space.operators:
        for stride in space.stem_strides:
            side = _side(space, stride, number + 1)
            if (first and op == "mixer") or _key(op, side) in modules:
                continue
            modules[_key(op, side)] = mobile_block(
                op,
                inputs if first else outputs,
                outputs,
                kernel=max(space.kernels),
                expansion=max(space.expansions),
                stride=2 if first else 1,
                side=side,
                activation="relu",  # has no weights
            )
    return nn.ModuleDict(modules)


def _side(space: SearchSpace, stem_stride: int, stages: int) -> int:
    """Edge of the map after some stages."""
    return space.image_size // (stem_stride * 2**stages)


def _key(op: str, side: int) -> str:
    return f"mixer_{side}" if op == "mixer" else op


def _head_key(space: SearchSpace, side: int) -> str:
    return f"map_{side}" if space.pooling == "map" else "mean"


def _fit(full: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A view: the first channels in the first two dimensions, the centre in those of the kernel."""
    for axis, size in enumerate(shape):
        start = (full.shape[axis] - size) // 2 if axis >= 2 else 0
        full = full.narrow(axis, start, size)
    return full
