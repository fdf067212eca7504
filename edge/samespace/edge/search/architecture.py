"""One architecture of a search space, in the one form in which equal networks are equal values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from samespace.edge.models.mobile_blocks import USES
from samespace.sdk.identity import canonical_json, digest

if TYPE_CHECKING:
    from samespace.edge.search.space import SearchSpace

__all__ = ["Activation", "Architecture", "Block", "Operator"]

Operator = Literal["inverted", "fused", "basic", "mixer"]
Activation = Literal["relu", "relu6", "hardswish"]


class Block(BaseModel):
    """One block; an option that its operator does not use is 1, whatever was given.

    Attributes:
        op: operator.
        kernel: odd edge of the kernel.
        expansion: hidden channels over channels in.
        width: channels out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    op: Operator
    kernel: int = Field(default=3, ge=1, le=7)
    expansion: int = Field(default=1, ge=1, le=8)
    width: int = Field(ge=4, le=2048)

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("op"), str) and data["op"] in USES:
            unused = {"kernel", "expansion"} - USES[data["op"]]
            return {**data, **dict.fromkeys(unused, 1)}
        return data

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel}: must be odd")
        return self


class Architecture(BaseModel):
    """A stem and stages of blocks; a stage's first block halves the map, and all its blocks have the stage's width.

    Attributes:
        stem_stride: of the stem.
        stem_width: channels of the stem.
        activation: of the whole network.
        stages: blocks of each stage.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stem_stride: int = Field(ge=1, le=4)
    stem_width: int = Field(ge=4, le=512)
    activation: Activation
    stages: tuple[tuple[Block, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for number, stage in enumerate(self.stages):
            if not stage:
                raise ValueError(f"stages[{number}]: needs a block")
            if stage[0].op == "mixer":
                raise ValueError(f"stages[{number}]: begins with a mixer, which cannot halve the map")
            if len({block.width for block in stage}) > 1:
                raise ValueError(f"stages[{number}]: its blocks differ in width")
        return self

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name it: equal for equal networks (of one space), for ever."""
        return digest(canonical_json(self.model_dump(mode="json")))[:16]

    def arguments(self, space: SearchSpace) -> dict[str, Any]:
        """What builds it as a model of the family ``mobile``, with the rest from the space; plain JSON."""
        blocks = [
            {**block.model_dump(mode="json"), "stride": 2 if index == 0 else 1}
            for stage in self.stages
            for index, block in enumerate(stage)
        ]
        return {
            "dim": space.dim,
            "image_size": space.image_size,
            "stem_width": self.stem_width,
            "stem_stride": self.stem_stride,
            "activation": self.activation,
            "blocks": blocks,
            "pooling": space.pooling,
        }
