"""Matryoshka: the same objective for every prefix of the embedding, so that a prefix is an embedding of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samespace.cloud.losses.base import Batch, CompatibilityLoss, Partner

__all__ = ["at_every_width", "widths"]


def widths(dim: int, prefixes: Sequence[int]) -> tuple[int, ...]:
    """The prefixes narrower than ``dim``, ascending, and ``dim`` itself last."""
    return (*sorted(width for width in prefixes if width < dim), dim)


def at_every_width(loss: CompatibilityLoss, batch: Batch, partner: Partner, widths: Sequence[int]) -> Tensor:
    r"""``(1 / |M|) sum_{m in M} loss(e[:m], g[:m])``, every prefix normalised again, on both sides.

    Matryoshka representation learning (Kusupati et al., NeurIPS 2022, arXiv 2205.13147, eq. 1) with all importances equal;
    class weights are tied, ``W_m = W[:, :m]`` (their MRL-E), and the partner's are cut alike: so each prefix is compatible by
    itself. A mean, where the paper has a sum, keeps the weights of a recipe what they are without prefixes.

    Args:
        loss: a term; one that does not look at the embedding counts once.
        batch: the trained model's side, at full width.
        partner: the other side, at the same width.
        widths: as :func:`widths` gives them; the full width comes last, since a loss may store what it sees at full width.
    """
    if not loss.on_embedding:
        return loss(batch, partner)
    return torch.stack([loss(batch.first(width), partner.first(width)) for width in widths]).mean()
