"""The search space: which choices there are, how many architectures they make, and moves that stay inside it.

After single-path one-shot search (Guo et al., ECCV 2020, arXiv 1904.00420) with the elastic sizes of once-for-all (Cai et al.,
ICLR 2020, arXiv 1908.09791).
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from samespace.edge.models.head import Pooling
from samespace.edge.models.mobile_blocks import USES
from samespace.edge.search.architecture import Activation, Architecture, Block, Operator
from samespace.sdk.errors import ConfigError

__all__ = ["Architecture", "Block", "SearchSpace", "parse_space"]

T = TypeVar("T")
Choices = Annotated[tuple[T, ...], Field(min_length=1)]
Width = Annotated[int, Field(ge=4, le=512)]


class SearchSpace(BaseModel):
    """Choices; an architecture takes one of each, a stage one width and depth, a block one operator with the options it uses.

    The defaults are for 32 x 32 pictures: two stages and a head with weights for every position.

    Attributes:
        image_size: edge of the square input in pixels; a multiple of the largest reduction and at least twice that: of a
            last map of one pixel the converters would make a reshape that fixes the batch.
        dim: of the embedding.
        stem_strides: of the stem; 1, 2 or 4.
        stem_widths: channels of the stem.
        activations: of the whole network.
        operators: of the blocks; one of them must not be the mixer, which cannot begin a stage.
        kernels: 3, 5 or 7.
        expansions: hidden channels over channels in, for ``inverted`` and ``fused``.
        widths: for each stage, its channels.
        depths: blocks a stage, the same choices for all stages.
        pooling: see :data:`samespace.edge.models.head.Pooling`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(default=32, ge=8, le=1024)
    dim: int = Field(default=128, ge=2, le=65536)
    stem_strides: Choices[int] = (1, 2, 4)
    stem_widths: Choices[Width] = (8, 16, 24)
    activations: Choices[Activation] = ("relu", "relu6", "hardswish")
    operators: Choices[Operator] = ("inverted", "fused", "basic", "mixer")
    kernels: Choices[int] = (3, 5)
    expansions: Choices[Annotated[int, Field(ge=1, le=8)]] = (1, 2, 4)
    widths: Annotated[tuple[Choices[Width], ...], Field(min_length=1, max_length=6)] = ((8, 16, 24, 32), (32, 48, 64, 96, 128))
    depths: Choices[Annotated[int, Field(ge=1, le=8)]] = (1, 2, 3)
    pooling: Pooling = "map"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        lists: dict[str, Sequence[object]] = {
            name: getattr(self, name)
            for name in ("stem_strides", "stem_widths", "activations", "operators", "kernels", "expansions", "depths")
        }
        for name, values in {**lists, **{f"widths[{i}]": values for i, values in enumerate(self.widths)}}.items():
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {list(values)}: a choice is given twice")
        for name, values, known in (("stem_strides", self.stem_strides, (1, 2, 4)), ("kernels", self.kernels, (3, 5, 7))):
            if wrong := [value for value in values if value not in known]:
                raise ValueError(f"{name}: {wrong[0]} must be one of {', '.join(map(str, known))}")
        if not self._operators(first=True):
            raise ValueError("operators: only the mixer, which cannot begin a stage; add inverted, fused or basic")
        reduction = max(self.stem_strides) * 2 ** len(self.widths)
        if self.image_size % reduction or self.image_size < 2 * reduction:
            raise ValueError(
                f"image_size = {self.image_size}: must be a multiple of {reduction}, the largest reduction of stem and stages, "
                f"and at least {2 * reduction}; or take a stem stride or a stage away"
            )
        return self

    def size(self) -> int:
        """The number of architectures, exactly: no two of them are the same network."""
        first, later = self._variants(first=True), self._variants(first=False)
        chains = sum(first * later ** (depth - 1) for depth in self.depths)
        stems = len(self.stem_strides) * len(self.stem_widths) * len(self.activations)
        return stems * math.prod(len(widths) * chains for widths in self.widths)

    def sample(self, rng: random.Random) -> Architecture:
        """Every choice drawn uniformly: first the sizes, then each block's operator, then the options it uses."""
        stages = []
        for widths in self.widths:
            width, depth = rng.choice(widths), rng.choice(self.depths)
            stages.append(tuple(self._draw(rng, index == 0, width) for index in range(depth)))
        return Architecture(
            stem_stride=rng.choice(self.stem_strides),
            stem_width=rng.choice(self.stem_widths),
            activation=rng.choice(self.activations),
            stages=tuple(stages),
        )

    def mutate(self, architecture: Architecture, rng: random.Random, rate: float) -> Architecture:
        """Each choice, with probability ``rate``, drawn anew (which may give what it was); blocks come and go at a stage's end.

        Raises:
            ConfigError: the architecture is not in the space.
        """
        self.check(architecture)

        def again(value: T, choices: Sequence[T]) -> T:
            return rng.choice(choices) if rng.random() < rate else value

        stages = []
        for blocks, widths in zip(architecture.stages, self.widths, strict=True):
            width, depth = again(blocks[0].width, widths), again(len(blocks), self.depths)
            changed = []
            for index in range(depth):
                if index < len(blocks):
                    old = blocks[index]
                    op = again(old.op, self._operators(index == 0))
                    same = USES[op] & USES[old.op]  # options that the old block has a value for
                    kernel = again(old.kernel, self.kernels) if "kernel" in same else rng.choice(self.kernels)
                    expansion = again(old.expansion, self.expansions) if "expansion" in same else rng.choice(self.expansions)
                    changed.append(Block(op=op, kernel=kernel, expansion=expansion, width=width))
                else:
                    changed.append(self._draw(rng, False, width))
            stages.append(tuple(changed))
        return Architecture(
            stem_stride=again(architecture.stem_stride, self.stem_strides),
            stem_width=again(architecture.stem_width, self.stem_widths),
            activation=again(architecture.activation, self.activations),
            stages=tuple(stages),
        )

    def crossover(self, one: Architecture, other: Architecture, rng: random.Random) -> Architecture:
        """A child with each size and each block from either parent, by a coin; every choice of it is a parent's.

        Raises:
            ConfigError: a parent is not in the space.
        """
        self.check(one)
        self.check(other)
        stages = []
        for pair in zip(one.stages, other.stages, strict=True):
            width, depth = rng.choice(pair)[0].width, len(rng.choice(pair))
            blocks = [rng.choice([blocks[index] for blocks in pair if index < len(blocks)]) for index in range(depth)]
            stages.append(tuple(block.model_copy(update={"width": width}) for block in blocks))
        return Architecture(
            stem_stride=rng.choice((one, other)).stem_stride,
            stem_width=rng.choice((one, other)).stem_width,
            activation=rng.choice((one, other)).activation,
            stages=tuple(stages),
        )

    def largest(self) -> Architecture:
        """The finest map, the widest and deepest stages, the largest options, and everywhere the heaviest operator."""
        kernel, expansion = max(self.kernels), max(self.expansions)
        # Weights for c channels in and out, over c^2.
        weights = {"fused": (kernel**2 + 1) * expansion, "basic": 2 * kernel**2, "inverted": 2 * expansion}
        op: Operator = max(self._operators(first=True), key=lambda op: weights[op])
        return Architecture(
            stem_stride=min(self.stem_strides),
            stem_width=max(self.stem_widths),
            activation=self.activations[0],
            stages=tuple(
                (Block(op=op, kernel=kernel, expansion=expansion, width=max(widths)),) * max(self.depths)
                for widths in self.widths
            ),
        )

    def contains(self, architecture: Architecture) -> bool:
        """Whether all choices of it are the space's."""
        return self._stranger(architecture) is None

    def check(self, architecture: Architecture) -> None:
        """Refuse an architecture that is not in the space.

        Raises:
            ConfigError: it is not; names the choice.
        """
        if stranger := self._stranger(architecture):
            raise ConfigError(f"the architecture {architecture.key} is not in the search space: {stranger}")

    def _stranger(self, architecture: Architecture) -> str | None:
        """The first choice that is not the space's."""
        if len(architecture.stages) != len(self.widths):
            return f"{len(architecture.stages)} stages instead of {len(self.widths)}"
        choices: list[tuple[str, object, Sequence[object]]] = [
            ("stem_stride", architecture.stem_stride, self.stem_strides),
            ("stem_width", architecture.stem_width, self.stem_widths),
            ("activation", architecture.activation, self.activations),
        ]
        for number, (blocks, widths) in enumerate(zip(architecture.stages, self.widths, strict=True)):
            choices.append((f"depth of stages[{number}]", len(blocks), self.depths))
            for index, block in enumerate(blocks):
                where = f"stages[{number}][{index}]"
                choices += [(f"{where}.width", block.width, widths), (f"{where}.op", block.op, self._operators(index == 0))]
                options = {"kernel": self.kernels, "expansion": self.expansions}
                choices += [(f"{where}.{name}", getattr(block, name), options[name]) for name in sorted(USES[block.op])]
        for where, value, known in choices:
            if value not in known:
                return f"{where} = {value!r}, not one of {', '.join(map(repr, known))}"
        return None

    def _operators(self, first: bool) -> tuple[Operator, ...]:
        return tuple(op for op in self.operators if not (first and op == "mixer"))

    def _variants(self, first: bool) -> int:
        """How many different blocks of one width there are."""
        choices = {"kernel": len(self.kernels), "expansion": len(self.expansions)}
        return sum(math.prod(choices[name] for name in USES[op]) for op in self._operators(first))

    def _draw(self, rng: random.Random, first: bool, width: int) -> Block:
        op = rng.choice(self._operators(first))
        kernel = rng.choice(self.kernels) if "kernel" in USES[op] else 1
        expansion = rng.choice(self.expansions) if "expansion" in USES[op] else 1
        return Block(op=op, kernel=kernel, expansion=expansion, width=width)


def parse_space(content: Mapping[str, Any]) -> SearchSpace:
    """A space from plain JSON values.

    Raises:
        ConfigError: an unknown key or a wrong value; names it.
    """
    try:
        return SearchSpace.model_validate(dict(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"search space: {where}: {message}" if where else f"search space: {message}") from None
