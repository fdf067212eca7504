"""Adapting a released model to one's own images while it goes on searching the same gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from samespace.cloud.evaluation import embed
from samespace.cloud.finetune.adaptation import Adaptation, low_rank, new_adaptation, total_change
from samespace.cloud.finetune.cut import cut
from samespace.cloud.finetune.exact import solve
from samespace.cloud.finetune.iterative import approach
from samespace.cloud.finetune.kfac import kfac
from samespace.cloud.finetune.linear import Linearised
from samespace.cloud.finetune.problem import Problem
from samespace.cloud.finetune.release import adapted
from samespace.cloud.inputs import normalised
from samespace.edge.models.head import L2Norm
from samespace.export.run import RunModel
from samespace.sdk.errors import DataError

__all__ = ["Fitted", "fit"]

Rows = npt.NDArray[np.float32]
#: Numbers wanted, and numbers of their Jacobian, up to which the closed form is quick; the residual that steps stop at.
_CLOSED, _JACOBIAN, _TOLERANCE = 6_000, 10**9, 1e-2


@dataclass(frozen=True, eq=False)
class Fitted:
    """An adaptation and what it does.

    Attributes:
        before: ``(n, d)`` the released model's embeddings of the images.
        fitted: ``(n, d)`` J_i dw, their first-order changes.
        left_out: ``(n, d)`` J_i dw of each image, had it not been there; None where there were too many to say.
        influence: ``(n, n)`` how far image j moved image i along what i was moved by, of |J_i dw|; None like ``left_out``.
        drift: ``(m,)`` first-order change of each anchor's embedding.
        measured: ``(m,)`` change of each anchor's embedding by the network with changed weights.
        bound: that no first-order change is above; infinite where nothing bounds it: without anchors, or of low rank.
        steps: taken by conjugate gradients; 0: solved in closed form.
    """

    adaptation: Adaptation
    before: Rows
    fitted: Rows
    left_out: Rows | None
    influence: Rows | None
    drift: Rows
    measured: Rows
    bound: float
    steps: int


def fit(
    model: RunModel,
    pictures: npt.NDArray[np.uint8],
    targets: Rows,
    anchors: npt.NDArray[np.uint8],
    *,
    trained: Sequence[str] = (),
    penalty: float = 1e-3,
    hold: float = 1.0,
    rank: int | None = None,
    closed: bool | None = None,
    device: str = "cpu",
    advance: Callable[[int, float], None] = lambda step, residual: None,
) -> Fitted:
    """Minimise the distance of pictures' embeddings to targets in the shared space, to first order; anchors are to stay.

    Args:
        pictures: ``(n, s, s, 3)`` uint8, as the model's preprocessing makes them.
        targets: ``(n, d)`` unit rows in the model's space: class prototypes of the gallery, or the cloud model's embeddings.
        anchors: ``(m, s, s, 3)`` uint8 pictures whose embeddings are to stay.
        trained: modules or parameters that may change; all without.
        penalty, hold: lambda and mu, see :class:`~samespace.cloud.finetune.problem.Problem`.
        rank: the change of each matrix is rounded to it, for a smaller file; whole without.
        closed: solve in closed form, or by conjugate gradients with K-FAC; by the number of images without.
        device: that it is solved on: ``cpu``, or a CUDA device; its linear algebra is in float64.
        advance: told after each step of conjugate gradients how far it is.

    Raises:
        ConfigError: names that the network does not have. DataError: targets that are not of the pictures.
    """
    network, preprocess = model.build().to(device), model.record.preprocess
    images = normalised(torch.from_numpy(np.array(pictures)), preprocess)
    held = normalised(torch.from_numpy(np.array(anchors)), preprocess) if len(anchors) else None
    front, back = cut(network, trained)
    images = _features(front, images.to(device))
    held = None if held is None else _features(front, held.to(device))
    linear = Linearised(back, trained, L2Norm())
    outputs = linear.outputs(images)
    if targets.shape != tuple(outputs.shape):
        raise DataError(f"targets of shape {targets.shape} for embeddings of shape {tuple(outputs.shape)}: one of each picture")
    wanted = torch.from_numpy(targets).to(device) - outputs
    problem = Problem(images, wanted, penalty, held, hold)
    left_out = influence = None
    steps = 0
    numbers = (len(pictures) + len(anchors)) * targets.shape[1]
    if closed is None:
        closed = numbers <= _CLOSED and numbers * sum(shape.numel() for shape in linear.shapes.values()) <= _JACOBIAN
    if closed:
        solution = solve(linear, problem, images)
        delta, left_out = solution.delta, solution.left_out.float().numpy(force=True)
        moved = torch.nn.functional.normalize(solution.fitted, dim=1)
        influence = torch.einsum("qnd,qd->qn", solution.influence, moved).float().numpy(force=True)
    else:
        found = approach(linear, problem, tolerance=_TOLERANCE, precondition=kfac(linear, problem), advance=advance)
        delta, steps = found.delta, found.steps
    whole = {name: value.numpy(force=True) for name, value in delta.items()}
    tensors = whole if rank is None else low_rank(whole, rank)
    facts = {"images": len(pictures), "anchors": len(anchors), "base_sha256": model.record.weights_sha256}
    settings = {"penalty": penalty, "hold": hold, **({} if rank is None else {"rank": rank})}
    if rank is not None:
        rounded = new_adaptation(tensors, drift=0.0, **facts)
        shapes = {name: tuple(shape) for name, shape in linear.shapes.items()}
        changes = total_change(shapes, model.record.weights_sha256, [rounded])
        delta = {name: torch.from_numpy(value).float().to(device) for name, value in changes.items()}
    drift = np.zeros(0, np.float32) if held is None else linear.tangent(held, delta).norm(dim=1).numpy(force=True)
    adaptation = new_adaptation(tensors, drift=float(drift.max(initial=0.0)), **facts, **settings)
    measured = np.zeros(0, np.float32)
    if len(anchors):
        after = embed(adapted(model, [adaptation]), anchors, preprocess)
        measured = np.linalg.norm(after - embed(network, anchors, preprocess), axis=1)
    return Fitted(
        adaptation,
        outputs.numpy(force=True),
        linear.tangent(images, delta).numpy(force=True),
        left_out,
        influence,
        drift,
        measured,
        problem.bound if rank is None else float("inf"),
        steps,
    )


def _features(front: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([front(part) for part in images.split(64)])
