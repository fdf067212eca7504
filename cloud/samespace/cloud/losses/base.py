"""What every compatibility loss is: a small module that says what it needs of its partner, and gets just that.

The *partner* is the model whose space the trained one shall join: the cloud model. Whatever it supplies carries no gradient, so
no loss can pull the cloud towards an edge model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated, Any, ClassVar, NamedTuple

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from samespace.sdk.errors import ConfigError

__all__ = [
    "Batch",
    "CompatibilityLoss",
    "Gallery",
    "Margin",
    "Need",
    "Partner",
    "Scale",
    "Shape",
    "Smoothing",
    "StageShape",
    "prefix",
]

#: Annotations of options: the recipe's values are checked against them.
Scale = Annotated[float, Field(gt=0)]
Margin = Annotated[float, Field(ge=0, lt=2)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]


class Need(Enum):
    """What a loss may ask of the partner. A new kind is one line here and one in ``training/partners.py``."""

    #: ``(n, d)`` unit rows: the partner's embedding of the same augmented images.
    EMBEDDING = "embedding"
    #: ``(classes, d)`` unit rows: the partner's class weights.
    HEAD = "head"
    #: ``(classes,)`` bool: classes that the partner learnt; what is its head's row of another one was made of its embeddings.
    KNOWN = "known classes"
    #: Feature maps ``(n, channels, h, w)`` of the same augmented images, one a stage, first stage first.
    STAGES = "stages"
    #: A :class:`Gallery`: the partner's embeddings of all training images. Needs a partner that stands still.
    GALLERY = "gallery"
    #: ``(n, classes)``: mean logits of the recipe's ``teachers``, finished runs, for the same augmented images.
    TEACHERS = "teachers"


#: What has the dimensions of the partner's space.
_OF_THE_SPACE = frozenset({Need.EMBEDDING, Need.HEAD, Need.GALLERY})


class Gallery(NamedTuple):
    """The finished partner's embeddings of the whole training set, as it stands in a gallery: not augmented.

    Attributes:
        embedding: ``(N, d)`` unit rows.
        labels: ``(N,)`` int64 in ``[0, classes)``.
    """

    embedding: Tensor
    labels: Tensor


class StageShape(NamedTuple):
    """One stage's feature map: its channels, and by what the input's edge was divided (2, 4, 8 …)."""

    channels: int
    stride: float


@dataclass(frozen=True)
class Shape:
    """What a loss may size its own parameters by.

    Attributes:
        classes: of the training set.
        dim: width of the embedding, at most; what the partner supplies is cut to it.
        stages: of the trained model; empty for a model without stages.
        partner_stages: of the partner.
    """

    classes: int
    dim: int
    stages: tuple[StageShape, ...] = ()
    partner_stages: tuple[StageShape, ...] = ()


@dataclass(frozen=True)
class Batch:
    """What the trained model made of the images.

    Attributes:
        embedding: ``(n, d)`` float, unit rows, with gradient.
        labels: ``(n,)`` int64 in ``[0, classes)``.
        rows: ``(n,)`` int64, which rows of the partner's :class:`Gallery` are these images; None where there is none.
        stages: feature maps with gradient, ``(n, channels, h, w)`` each; empty where no loss asked for stages.
        head: ``(classes, d)`` unit rows with gradient, the trained model's own class weights; None where it has none.
        costs: ``(n,)`` float >= 0, what it costs when the trained model errs where the partner did not; None: 1 each.
    """

    embedding: Tensor
    labels: Tensor
    rows: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    head: Tensor | None = None
    costs: Tensor | None = None

    def first(self, width: int) -> Batch:
        """The first ``width`` coordinates of embedding and head, normalised again."""
        if width == self.embedding.shape[1]:
            return self
        head = None if self.head is None else prefix(self.head, width)
        return replace(self, embedding=prefix(self.embedding, width), head=head)


@dataclass(frozen=True)
class Partner:
    """What the partner supplied; nothing in it carries a gradient."""

    supplied: Mapping[Need, Any]

    def __post_init__(self) -> None:
        if attached := [need.value for need, value in self.supplied.items() if any(t.requires_grad for t in _tensors(value))]:
            raise ValueError(f"the partner's {', '.join(attached)} must be detached: an edge loss must not train the partner")

    @property
    def embedding(self) -> Tensor:
        """``(n, d)`` unit rows, row i for image i of the batch."""
        return self._get(Need.EMBEDDING)

    @property
    def head(self) -> Tensor:
        """``(classes, d)`` unit rows, row c for class c."""
        return self._get(Need.HEAD)

    @property
    def known(self) -> Tensor:
        """``(classes,)`` bool: which classes the partner learnt."""
        return self._get(Need.KNOWN)

    @property
    def stages(self) -> tuple[Tensor, ...]:
        """``(n, channels, h, w)`` each, first stage first; image i of the batch in row i."""
        return self._get(Need.STAGES)

    @property
    def gallery(self) -> Gallery:
        """Embeddings and labels of all training images."""
        return self._get(Need.GALLERY)

    @property
    def teachers(self) -> Tensor:
        """``(n, classes)`` mean logits, row i for image i of the batch."""
        return self._get(Need.TEACHERS)

    @property
    def width(self) -> int | None:
        """Dimension of what it supplies of its space; None where that is nothing."""
        rows = (value for need, value in self.supplied.items() if need in _OF_THE_SPACE)
        return next(((row.embedding if isinstance(row, Gallery) else row).shape[1] for row in rows), None)

    def first(self, width: int) -> Partner:
        """The same with the first ``width`` coordinates of embeddings, head and gallery, normalised again."""
        narrowed = {need: _narrowed(value, width) for need, value in self.supplied.items() if need in _OF_THE_SPACE}
        return Partner({**self.supplied, **narrowed})

    def only(self, needs: frozenset[Need]) -> Partner:
        """The part of it that a loss declared.

        Raises:
            ConfigError: the partner does not supply all of ``needs``.
        """
        return Partner({need: self._get(need) for need in needs})

    def _get(self, need: Need) -> Any:
        if need not in self.supplied:
            raise ConfigError(
                f"the partner's {need.value} is not supplied: declare Need.{need.name} in the loss's 'needs', "
                "and use the loss for models that have a partner"
            )
        return self.supplied[need]


class CompatibilityLoss(nn.Module, ABC):
    """One term of a tier's objective. Subclasses live one to a file in this folder and are named in ``registry.py``.

    The constructor takes the :class:`Shape` and then keyword options with defaults and annotations; a recipe sets them by
    name. A loss may own parameters; they are trained with the model and are no part of it. A loss may own buffers (a queue,
    anchors): they are checkpointed with the run; it changes them in training mode only.

    ``forward`` may be given embeddings narrower than ``shape.dim``: their first coordinates, normalised again (a Matryoshka
    prefix); the partner's are then as narrow. State of full width is cut and normalised by the loss: see :func:`prefix`.
    """

    #: What it needs of the partner; empty for a loss that trains a model on its own.
    needs: ClassVar[frozenset[Need]] = frozenset()
    #: Whether it puts all models that are trained with it into one space, although it needs no partner.
    stationary: ClassVar[bool] = False
    #: Whether it ties the embedding to the partner's space. One that compares classifications does not: a rotation of embedding
    #: and head together leaves them what they are.
    joins: ClassVar[bool] = True
    #: Whether it looks at the embedding, so that Matryoshka repeats it for every prefix.
    on_embedding: ClassVar[bool] = True

    @abstractmethod
    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        """The mean loss of the batch, a scalar."""

    def head(self) -> Tensor | None:
        """``(classes, dim)`` unit rows, with gradient: its own class weights; None where it has none."""
        return None


def prefix(rows: Tensor, width: int) -> Tensor:
    """``(n, d)`` -> ``(n, width)``: the first coordinates as unit rows; ``rows`` itself where it is as wide as that."""
    return rows if rows.shape[1] == width else F.normalize(rows[:, :width], dim=1)


def _narrowed(value: Any, width: int) -> Any:
    if isinstance(value, Gallery):
        return Gallery(_narrowed(value.embedding, width), value.labels)
    return prefix(value, width) if value.shape[1] > width else value


def _tensors(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)
