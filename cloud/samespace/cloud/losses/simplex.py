"""A head that is never learnt: class prototypes on a fixed simplex, the same for all models, so that all share one space."""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Margin, Partner, Scale, Shape, Smoothing, prefix
from samespace.cloud.losses.cosine_softmax import cosine_cross_entropy
from samespace.sdk.errors import ConfigError

__all__ = ["Simplex", "projection", "regular_simplex"]

Vertices = Annotated[int, Field(ge=2)]

#: What the projection is drawn from. Another text makes another space: never change it.
_SEED = b"samespace simplex"


class Simplex(CompatibilityLoss):
    r"""``mean_i -log softmax_y(s * (cos(e_i, W_c) - m * [c = y_i]))``, with fixed W and c over all pre-allocated classes.

    The d-Simplex classifier with stationary features (CoReS, Biondi et al., TPAMI 2023, arXiv 2111.07632; HOC, Biondi et al.,
    CVPR 2024, arXiv 2405.02581): the vertices of a regular simplex have equal cosines -1/(K-1), and a vertex that has no class
    yet keeps room for one to come. Nothing of it is learnt and nothing depends on a partner: models trained at any time, with
    more classes too if the old ones keep their places, meet at the same prototypes.

    The simplex of K classes has K - 1 dimensions; it is shrunk to ``dim`` by a fixed orthonormal :func:`projection` and its
    rows are normalised again, which leaves cosines spread around 0 by about ``dim ** -0.5`` in place of the equal ones. The
    projections are nested: the head of 64 dimensions is the first 64 coordinates, normalised, of that of 128.

    Args:
        shape: classes and dimension; class c has vertex c.
        classes: K, vertices pre-allocated: at least the training classes, and more than the dimension. Models share a space
            only at the same K.
        scale: s, the inverse temperature, > 0.
        margin: m in cosine units, >= 0.
        label_smoothing: share of the target spread over all K, in [0, 1).

    Raises:
        ConfigError: too few vertices for the training classes or for the dimension.
    """

    stationary: ClassVar[bool] = True

    vertices: Tensor

    def __init__(
        self,
        shape: Shape,
        *,
        classes: Vertices = 1024,
        scale: Scale = 16.0,
        margin: Margin = 0.0,
        label_smoothing: Smoothing = 0.0,
    ) -> None:
        super().__init__()
        if classes < max(shape.classes, shape.dim + 1):
            need = max(shape.classes, shape.dim + 1)
            raise ConfigError(
                f"loss simplex: option classes = {classes} is too few for {shape.classes} training classes and an embedding of "
                f"{shape.dim} dimensions: set it to {need} or more, and to the same number for all models of the space"
            )
        self.scale, self.margin, self.label_smoothing = scale, margin, label_smoothing
        self.classes = shape.classes
        vertices = F.normalize(regular_simplex(classes) @ projection(classes, shape.dim), dim=1)
        # Not persistent: it is computed, not learnt, and a checkpoint of another K must not replace it.
        self.register_buffer("vertices", vertices.to(torch.get_default_dtype()), persistent=False)

    def head(self) -> Tensor:
        """``(classes, dim)`` unit rows: the vertices of the training classes."""
        return self.vertices[: self.classes]

    def forward(self, batch: Batch, partner: Partner) -> Tensor:
        vertices = prefix(self.vertices, batch.embedding.shape[1])
        return cosine_cross_entropy(batch, vertices, self.scale, self.margin, self.label_smoothing)


def regular_simplex(count: int) -> Tensor:
    """``(count, count)`` float64 unit rows of rank count-1 with equal cosines -1/(count-1): unit vectors less their mean."""
    return (torch.eye(count, dtype=torch.float64) - 1 / count) * (count / (count - 1)) ** 0.5


def projection(count: int, dim: int) -> Tensor:
    """``(count, dim)`` float64 orthonormal columns, all orthogonal to (1, …, 1); the same in every process.

    Columns come from a hash stream, so that neither torch's generators nor their versions matter, and are made orthonormal one
    after the other, so that fewer columns are the first of more.

    Args:
        count: rows.
        dim: columns, < ``count``.
    """
    stream = hashlib.shake_256(_SEED).digest(4 * count * dim)
    drawn = np.frombuffer(stream, dtype="<u4").reshape(dim, count).T / 2.0**31 - 1
    columns = np.concatenate([np.ones((count, 1)), drawn], axis=1)
    orthonormal, triangle = np.linalg.qr(columns)
    # QR leaves signs open: a positive diagonal fixes them.
    return torch.from_numpy((orthonormal * np.sign(np.diagonal(triangle)))[:, 1:].copy())
