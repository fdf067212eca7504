"""Two maps at once, so that old clients, new clients, old galleries and converted galleries all go together.

Ricci, Biondi et al., "lambda-orthogonality" (NeurIPS 2025, arXiv 2509.16664): a backward map B of the new model's embeddings
that keeps their geometry, but for as much as lambda allows, and a forward map F of the old ones; neither model is touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samespace.cloud.adapters.linear import fit_ridge
from samespace.cloud.adapters.network import Residual
from samespace.cloud.adapters.pairs import Rows
from samespace.cloud.adapters.procrustes import fit_rotation
from samespace.sdk.errors import DataError

__all__ = ["Pair", "PairSettings", "fit_pair"]

Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class PairSettings:
    """How a pair is fitted.

    Attributes:
        allowed: lambda, the Frobenius distance of ``W W^T`` from the identity up to which nothing is paid; 0 keeps B a rotation
            (``B = R exp(P - P^T)``), so that M(n, n) stays exactly what it was.
        steepness: a of the soft threshold.
        contrast: weight of the supervised contrastive terms.
        temperature: of them.
    """

    allowed: float = 4.0
    steepness: float = 10.0
    contrast: float = 0.5
    temperature: float = 0.1
    hidden: int = 256
    steps: int = 2000
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 0


class Pair(NamedTuple):
    """Tensors of the two adapters: ``backward`` takes new embeddings, ``forward`` old ones; both give the old dimension."""

    backward: Tensors
    forward: Tensors


def fit_pair(old: Rows, new: Rows, labels: npt.NDArray[np.int64], settings: PairSettings | None = None) -> Pair:
    """Minimise ``L_F + L_B + contrast * L_C + L_lambda``:

    ``L_F = ||F(o) - B(n)||^2``, ``L_B = ||B(n) - o||^2``, ``L_C = supcon(F(o), B(n)) + supcon(F(o), o)``,
    ``L_lambda = sigmoid(a (delta - lambda)) delta`` with ``delta = ||W W^T - I||_F``.

    Args:
        old: ``(n, d)`` unit-norm embeddings by the old model, n >= 20.
        new: ``(n, d')`` of the same items by the new one, d' >= d; its first d coordinates are used where it is wider.
        labels: ``(n,)`` classes.

    Raises:
        DataError: too few pairs, or shapes that do not fit.
    """
    settings = settings or PairSettings()
    if old.ndim != 2 or new.ndim != 2 or not len(old) == len(new) == len(labels) or len(old) < 20:
        raise DataError(
            f"a pair of adapters needs at least 20 items, each by both models and with a class; got {old.shape}, {new.shape} "
            f"and {len(labels)}"
        )
    if new.shape[1] < old.shape[1]:
        raise DataError(f"the new model has {new.shape[1]} dimensions, fewer than the old one's {old.shape[1]}; use ridge")
    o, n = (torch.from_numpy(np.asarray(rows, np.float32)) for rows in (old, new))
    classes = torch.from_numpy(np.asarray(labels, np.int64))
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        back = _Backward(fit_rotation(new, old), strict=settings.allowed == 0)
        weight, bias = fit_ridge(old, n.numpy() @ back.weight().detach().numpy())
        forth = Residual(torch.from_numpy(weight), torch.from_numpy(bias), 0, settings.hidden)
        _train(back, forth, o, n, classes, settings)
        backward = {"linear.weight": back.weight().detach().numpy().astype(np.float32)}
    return Pair(backward, forth.tensors(uncertain=False))


class _Backward(nn.Module):
    def __init__(self, rotation: npt.NDArray[np.float64], *, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        start = torch.from_numpy(rotation.astype(np.float32))
        self.register_buffer("start", start)
        self.free = nn.Parameter(torch.zeros(len(start), len(start)) if strict else start.clone())

    def weight(self) -> Tensor:
        """``(d', d)``, with orthonormal columns where it is strict."""
        if not self.strict:
            return self.free
        return torch.matrix_exp(self.free - self.free.T) @ self.get_buffer("start")

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows @ self.weight(), dim=1)


def _train(back: _Backward, forth: Residual, o: Tensor, n: Tensor, classes: Tensor, settings: PairSettings) -> None:
    parameters = [*back.parameters(), *forth.parameters()]
    optimiser = torch.optim.Adam(parameters, settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, total_steps=settings.steps)
    nothing = torch.zeros(len(o), 0)
    for _ in range(settings.steps):
        rows = torch.randint(len(o), (min(settings.batch, len(o)),))
        mapped = back(n[rows])
        moved, _ = forth(o[rows], nothing[rows])
        loss = (moved - mapped).square().sum(1).mean() + (mapped - o[rows]).square().sum(1).mean()
        if settings.contrast:
            labels = classes[rows]
            pairs = _supcon(moved, mapped, labels, settings.temperature) + _supcon(moved, o[rows], labels, settings.temperature)
            loss = loss + settings.contrast * pairs
        if settings.allowed:
            weight = back.weight()
            away = torch.linalg.matrix_norm(weight.T @ weight - torch.eye(weight.shape[1]))
            loss = loss + torch.sigmoid(settings.steepness * (away - settings.allowed)) * away
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _supcon(anchors: Tensor, others: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrast of each anchor with all others (Khosla et al., NeurIPS 2020, the sum outside the logarithm)."""
    logs = F.log_softmax(anchors @ others.T / temperature, dim=1)
    same = (labels[:, None] == labels[None, :]).float()
    return -((logs * same).sum(1) / same.sum(1)).mean()
