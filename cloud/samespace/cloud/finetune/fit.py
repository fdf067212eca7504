"""Adapting a released model to one's own images while it goes on searching the same gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn

from samespace.cloud.evaluation import embed
from samespace.cloud.finetune.adaptation import Adaptation, composed, new_adaptation
from samespace.cloud.finetune.cut import cut
from samespace.cloud.finetune.exact import MOST, solve
from samespace.cloud.finetune.iterative import approach
from samespace.cloud.finetune.linear import Linearised
from samespace.cloud.finetune.problem import Problem
from samespace.cloud.inputs import normalised
from samespace.edge.models.head import L2Norm
from samespace.export.run import RunModel, load_model
from samespace.sdk.errors import DataError
from samespace.sdk.identity import digest

__all__ = ["Fitted", "adapted", "fit"]

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Fitted:
    """An adaptation and what it does.

    Attributes:
        left_out: ``(n, d)`` J_i dw of each image, had it not been there; None where there were too many to say.
        drift: ``(m,)`` first-order change of each anchor's embedding.
        measured: ``(m,)`` change of each anchor's embedding by the adapted network itself.
        bound: that no first-order change is above.
    """

    adaptation: Adaptation
    left_out: Rows | None
    drift: Rows
    measured: Rows
    bound: float


def fit(
    model: RunModel,
    pictures: npt.NDArray[np.uint8],
    targets: Rows,
    anchors: npt.NDArray[np.uint8],
    *,
    trained: Sequence[str] = (),
    penalty: float = 1e-3,
    hold: float = 1.0,
) -> Fitted:
    """Minimise the distance of pictures' embeddings to targets in the shared space, to first order; anchors are to stay.

    Args:
        pictures: ``(n, s, s, 3)`` uint8, as the model's preprocessing makes them.
        targets: ``(n, d)`` unit rows in the model's space: class prototypes of the gallery, or the cloud model's embeddings.
        anchors: ``(m, s, s, 3)`` uint8 pictures whose embeddings are to stay.
        trained: modules or parameters that may change; all without.
        penalty, hold: lambda and mu, see :class:`~samespace.cloud.finetune.problem.Problem`.

    Raises:
        ConfigError: names that the network does not have. DataError: targets that are not of the pictures.
    """
    network, preprocess = model.build(), model.record.preprocess
    images = normalised(torch.from_numpy(np.array(pictures)), preprocess)
    held = normalised(torch.from_numpy(np.array(anchors)), preprocess) if len(anchors) else None
    front, back = cut(network, trained)
    images = _features(front, images)
    held = None if held is None else _features(front, held)
    linear = Linearised(back, trained, L2Norm())
    outputs = linear.outputs(images)
    if targets.shape != tuple(outputs.shape):
        raise DataError(f"targets of shape {targets.shape} for embeddings of shape {tuple(outputs.shape)}: one of each picture")
    wanted = torch.from_numpy(targets) - outputs
    problem = Problem(images, wanted, penalty, held, hold)
    left_out = None
    if (len(pictures) + len(anchors)) * targets.shape[1] <= MOST:
        solution = solve(linear, problem)
        delta, left_out = solution.delta, solution.left_out.float().numpy()
    else:
        delta = approach(linear, problem).delta
    drift = np.zeros(0, np.float32) if held is None else linear.tangent(held, delta).norm(dim=1).numpy()
    adaptation = new_adaptation(
        {name: value.numpy() for name, value in delta.items()},
        base_sha256=model.record.weights_sha256,
        images=len(pictures),
        anchors=len(anchors),
        drift=float(drift.max(initial=0.0)),
        penalty=penalty,
        hold=hold,
    )
    measured = np.zeros(0, np.float32)
    if len(anchors):
        after = embed(adapted(model, [adaptation]), anchors, preprocess)
        measured = np.linalg.norm(after - embed(network, anchors, preprocess), axis=1)
    return Fitted(adaptation, left_out, drift, measured, problem.bound)


def adapted(model: RunModel, adaptations: Sequence[Adaptation]) -> nn.Module:
    """The network with the changes of a set of adaptations, in evaluation mode.

    Raises:
        ConfigError: adaptations that are not of this model's weights.
    """
    base: dict[str, Tensor] = safetensors.torch.load(model.weights)
    floats = {name: tensor.numpy() for name, tensor in base.items() if tensor.is_floating_point()}
    changed = composed(floats, model.record.weights_sha256, adaptations)
    weights = safetensors.torch.save({**base, **{name: torch.from_numpy(value) for name, value in changed.items()}})
    # The record says whose weights they were; these are made of them.
    record = model.record.model_copy(update={"weights_sha256": digest(weights)})
    return load_model(record, weights, model.name)


def _features(front: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([front(part) for part in images.split(64)])
