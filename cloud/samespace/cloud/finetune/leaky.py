"""A released model with leaky ReLU for ReLU, brought back to its own embeddings on pictures without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samespace.cloud.evaluation import embed
from samespace.cloud.inputs import normalised
from samespace.edge.models.leaky import SLOPE, leaky
from samespace.export.run import RunModel
from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.identity import digest

__all__ = ["Converted", "converted"]

_BATCH = 64
#: Every so many pictures, one is only looked at.
_HELD = 5


@dataclass(frozen=True, eq=False)
class Converted:
    """A converted model, and cosines of its embeddings to the released model's on pictures that it did not learn from.

    Attributes:
        recalibrated: ``(n,)`` with new batch statistics alone.
        cosines: ``(n,)`` after the steps.
    """

    model: RunModel
    recalibrated: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]


def converted(
    model: RunModel,
    pictures: npt.NDArray[np.uint8],
    *,
    slope: float = SLOPE,
    steps: int = 300,
    rate: float = 1e-3,
    seed: int = 0,
    advance: Callable[[int, float], None] = lambda step, loss: None,
) -> Converted:
    """Swap the activations, estimate batch statistics anew, and learn the released model's embeddings.

    Args:
        pictures: ``(n, s, s, 3)`` uint8, as the model's preprocessing makes them; no labels are needed.
        slope: below 0.
        steps: of AdamW on batches of 64; 0: recalibration only.
        rate: of the steps; falls to 0 along a cosine.
        seed: of the order.
        advance: told after each step how far it is.

    Raises:
        ConfigError: a model without ReLU, or one that is leaky already. DataError: fewer than 10 pictures.
    """
    network, record, preprocess = model.build(), model.record, model.record.preprocess
    if record.family == "leaky" or not any(isinstance(layer, nn.ReLU | nn.ReLU6) for layer in network.modules()):
        raise ConfigError(f"{model.name!r} has no ReLU that could be made leaky")
    if len(pictures) < 2 * _HELD:
        raise DataError(f"{len(pictures)} pictures are too few to convert a model with; give {2 * _HELD} or more")
    held = np.arange(len(pictures)) % _HELD == 0
    images = normalised(torch.from_numpy(np.array(pictures[~held])), preprocess)
    wanted = torch.from_numpy(embed(network, pictures[~held], preprocess))
    released = embed(network, pictures[held], preprocess)

    def cosines() -> npt.NDArray[np.float32]:
        return (embed(network, pictures[held], preprocess) * released).sum(1)

    leaky(network, slope).requires_grad_(True)
    _recalibrate(network, images)
    first = cosines()
    _regress(network, images, wanted, steps, rate, seed, advance)
    weights = safetensors.torch.save({name: value.contiguous() for name, value in network.state_dict().items()})
    own = {key: value for key, value in record.arguments.items() if key not in ("dim", "image_size")}
    sized = {key: record.arguments[key] for key in ("dim", "image_size")}
    facts = {
        "name": f"{record.name}-leaky",
        "family": "leaky",
        "arguments": {**sized, "family": record.family, "arguments": own, "slope": slope},
        "weights_sha256": digest(weights),
    }
    made = type(record).model_validate({**record.model_dump(), **facts})
    return Converted(RunModel(f"{model.name}-leaky", made, weights), first, cosines())


def _recalibrate(network: nn.Module, images: Tensor) -> None:
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    with torch.no_grad():
        for part in images.split(_BATCH):
            network(part)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
        layer.eval()


def _regress(
    network: nn.Module,
    images: Tensor,
    wanted: Tensor,
    steps: int,
    rate: float,
    seed: int,
    advance: Callable[[int, float], None],
) -> None:
    if not steps:
        return
    # Statistics stay: batches of a few pictures would move them.
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    chance = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(images), (_BATCH,), generator=chance)
        optimiser.zero_grad()
        loss = (F.normalize(network(images[rows])) - wanted[rows]).square().sum(1).mean()
        loss.backward()
        optimiser.step()
        schedule.step()
        advance(step + 1, float(loss))
