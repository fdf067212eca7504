"""What every compatibility loss is: a small module that says what it needs of its partner, and gets just that.

The *partner* is the model whose space the trained one shall join: the cloud model. Whatever it supplies carries no gradient, so
no loss can pull the cloud towards an edge model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from samespace.sdk.errors import ConfigError

__all__ = ["Batch", "CompatibilityLoss", "Margin", "Need", "Partner", "Scale", "Shape", "Smoothing"]

#: Annotations of options: the recipe's values are checked against them.
Scale = Annotated[float, Field(gt=0)]
Margin = Annotated[float, Field(ge=0, lt=2)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]


class Need(Enum):
    """What a loss may ask of the partner. A new kind is one line here and one in ``training/tier.py``, which supplies it."""

    #: ``(n, d)`` unit rows: the partner's embedding of the same augmented images.
    EMBEDDING = "embedding"
    #: ``(classes, d)`` unit rows: the partner's class weights.
    HEAD = "head"


@dataclass(frozen=True)
class Shape:
    """What a loss may size its own parameters by."""

    classes: int
    dim: int


@dataclass(frozen=True)
class Batch:
    """What the trained model made of the images.

    Attributes:
        embedding: ``(n, d)`` float, unit rows, with gradient.
        labels: ``(n,)`` int64 in ``[0, classes)``.
    """

    embedding: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Partner:
    """What the partner supplied; nothing in it carries a gradient."""

    supplied: Mapping[Need, Tensor]

    def __post_init__(self) -> None:
        if attached := [need.value for need, value in self.supplied.items() if value.requires_grad]:
            raise ValueError(f"the partner's {', '.join(attached)} must be detached: an edge loss must not train the partner")

    @property
    def embedding(self) -> Tensor:
        """``(n, d)`` unit rows, row i for image i of the batch."""
        return self._get(Need.EMBEDDING)

    @property
    def head(self) -> Tensor:
        """``(classes, d)`` unit rows, row c for class c."""
        return self._get(Need.HEAD)

    def only(self, needs: frozenset[Need]) -> Partner:
        """The part of it that a loss declared.

        Raises:
            ConfigError: the partner does not supply all of ``needs``.
        """
        return Partner({need: self._get(need) for need in needs})

    def _get(self, need: Need) -> Tensor:
        if need not in self.supplied:
            raise ConfigError(
                f"the partner's {need.value} is not supplied: declare Need.{need.name} in the loss's 'needs', "
                "and use the loss for models that have a partner"
            )
        return self.supplied[need]


class CompatibilityLoss(nn.Module, ABC):
    """One term of a tier's objective. Subclasses live one to a file in this folder and are named in ``registry.py``.

    The constructor takes the :class:`Shape` and then keyword options with defaults and annotations; a recipe sets them by
    name. A loss may own parameters; they are trained with the model and are no part of it.
    """

    #: What it needs of the partner; empty for a loss that trains a model on its own.
    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        """The mean loss of the batch, a scalar."""
