"""Networks given block by block: what an architecture search over mobile operators finds, rebuilt from plain JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from samespace.edge.models.arguments import divisible, in_range, one_of
from samespace.edge.models.blocks import StagedNet
from samespace.edge.models.head import EmbeddingHead, Pooling
from samespace.edge.models.mobile_blocks import ACTIVATIONS, OPERATORS, mobile_block, mobile_stem
from samespace.sdk.errors import ConfigError

__all__ = ["DEFAULT_BLOCKS", "build"]

#: For 32 x 32 pictures: shallow, with a large map for the head.
DEFAULT_BLOCKS: tuple[Mapping[str, Any], ...] = (
    {"op": "fused", "width": 32, "kernel": 3, "expansion": 3, "stride": 2},
    {"op": "inverted", "width": 96, "kernel": 3, "expansion": 4, "stride": 2},
)


def build(
    *,
    dim: int,
    image_size: int,
    stem_width: int = 16,
    stem_stride: int = 2,
    activation: str = "relu6",
    blocks: Sequence[Mapping[str, Any]] = DEFAULT_BLOCKS,
    pooling: Pooling = "map",
) -> StagedNet:
    """A convolution as stem, the blocks, and a head; a block of stride 2 begins a new stage.

    Args:
        dim: of the embedding.
        image_size: edge of the square input in pixels; a multiple of the product of all strides.
        stem_width: channels of the stem.
        stem_stride: 1 for icons, 2 or 4 for less work.
        activation: of the whole network: ``relu``, ``relu6`` or ``hardswish``.
        blocks: one table a block: ``op`` (``inverted``, ``fused``, ``basic``, ``mixer``), ``width`` (channels out), and, where
            it is not the default, ``kernel`` (3), ``expansion`` (1), ``stride`` (1; 2 halves the map). ``basic`` has no
            expansion, ``mixer`` neither expansion nor kernel: there they may be given and do nothing.
        pooling: see :data:`samespace.edge.models.head.Pooling`.

    Raises:
        ConfigError: an argument out of range, an unknown or missing key of a block, a mixer that would change the shape.
    """
    in_range("dim", dim, 2, 65536)
    in_range("image_size", image_size, 8, 1024)
    in_range("stem_width", stem_width, 4, 512)
    in_range("stem_stride", stem_stride, 1, 4)
    one_of("activation", activation, tuple(ACTIVATIONS))
    if isinstance(blocks, str | Mapping) or not isinstance(blocks, Sequence) or not 1 <= len(blocks) <= 64:
        raise ConfigError(f"model argument blocks = {blocks!r}: must be a list of 1 to 64 tables")
    side, reduction, channels = image_size // stem_stride, stem_stride, stem_width
    stages: list[list[nn.Module]] = []
    for index, table in enumerate(blocks):
        block = _read(f"blocks[{index}]", table)
        if block.op == "mixer" and (block.stride != 1 or block.width != channels):
            raise ConfigError(
                f"model argument blocks[{index}] is a mixer, which keeps the shape: set stride = 1 and width = {channels}, "
                f"as in the block before; got stride = {block.stride}, width = {block.width}"
            )
        reduction *= block.stride
        divisible("image_size", image_size, reduction, f"the reduction from the stem to blocks[{index}]")
        if block.stride > 1 or not stages:
            stages.append([])
        stages[-1].append(_made(block, channels, side, activation))
        channels, side = block.width, side // block.stride
    stem = mobile_stem(stem_width, stem_stride, activation)
    head = EmbeddingHead(channels, side, dim, pooling)
    return StagedNet(stem, (nn.Sequential(*stage) for stage in stages), head)


class _Table(NamedTuple):
    op: str
    width: int
    kernel: int = 3
    expansion: int = 1
    stride: int = 1


def _read(where: str, table: Any) -> _Table:
    if not isinstance(table, Mapping):
        raise ConfigError(f"model argument {where} = {table!r}: must be a table with {', '.join(_Table._fields)}")
    if unknown := sorted(set(table) - set(_Table._fields), key=str):
        raise ConfigError(f"model argument {where}: unknown key {unknown[0]!r}; known are {', '.join(_Table._fields)}")
    for name in ("op", "width"):
        if name not in table:
            raise ConfigError(f"model argument {where}: missing key {name!r}")
    block = _Table(**table)
    one_of(f"{where}.op", block.op, OPERATORS)
    in_range(f"{where}.width", block.width, 4, 2048)
    in_range(f"{where}.expansion", block.expansion, 1, 8)
    one_of(f"{where}.kernel", block.kernel, (1, 3, 5, 7))
    in_range(f"{where}.stride", block.stride, 1, 2)
    return block


def _made(block: _Table, channels: int, side: int, activation: str) -> nn.Module:
    return mobile_block(
        block.op,
        channels,
        block.width,
        kernel=block.kernel,
        expansion=block.expansion,
        stride=block.stride,
        side=side,
        activation=activation,
    )
