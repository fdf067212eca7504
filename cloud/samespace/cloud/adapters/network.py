"""A residual network on embeddings: ridge regression, and what an MLP finds beyond it.

With side information it is FCT's forward transformation (Ramanujan et al., CVPR 2022); with class weights and an uncertainty
head FastFill's (Jaeckle et al., ICLR 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samespace.cloud.adapters.linear import fit_ridge
from samespace.cloud.adapters.pairs import Rows
from samespace.sdk.errors import DataError

__all__ = ["NetworkSettings", "Residual", "fit_network"]


@dataclass(frozen=True)
class NetworkSettings:
    """How a network is fitted.

    Attributes:
        hidden: width of its two hidden layers.
        steps: of Adam, batches of ``batch`` pairs.
        discriminative: weight of the frozen classifier's loss on the mapped rows; 0 for none.
        uncertain: whether it learns to say how far it may be wrong.
        held_out: share of the pairs by which the best moment is chosen.
    """

    hidden: int = 256
    steps: int = 2000
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    discriminative: float = 0.1
    scale: float = 16.0
    uncertain: bool = True
    held_out: float = 0.1
    seed: int = 0


class Residual(nn.Module):
    """``x W + b + out(relu(hidden(relu(hidden([x, side])))))``, of unit norm; begins as the linear map alone."""

    def __init__(self, weight: Tensor, bias: Tensor | None, side: int, hidden: int) -> None:
        super().__init__()
        source, target = weight.shape
        self.linear = nn.Linear(source, target, bias=bias is not None)
        with torch.no_grad():
            self.linear.weight.copy_(weight.T)
            if bias is not None:
                self.linear.bias.copy_(bias)
        self.hidden = nn.ModuleList([nn.Linear(source + side, hidden), nn.Linear(hidden, hidden)])
        self.out = nn.Linear(hidden, target)
        self.sigma = nn.Linear(hidden, 1)
        for layer in (self.out, self.sigma):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """``(n, d')`` unit rows, and ``(n,)`` logarithms of their variance."""
        inside = torch.cat([x, side], 1)
        for layer in self.hidden:
            inside = F.relu(layer(inside))
        return F.normalize(self.linear(x) + self.out(inside), dim=1), self.sigma(inside)[:, 0]

    def tensors(self, *, uncertain: bool) -> dict[str, npt.NDArray[np.float32]]:
        """As :class:`samespace.sdk.adapter.Adapter` names them."""
        layers = {"linear": self.linear, "hidden.0": self.hidden[0], "hidden.1": self.hidden[1], "out": self.out}
        if uncertain:
            layers["sigma"] = self.sigma
        found = {}
        for name, layer in layers.items():
            found[f"{name}.weight"] = layer.weight.detach().numpy().T.astype(np.float32)
            if layer.bias is not None:
                found[f"{name}.bias"] = layer.bias.detach().numpy().astype(np.float32)
        return found


def fit_network(
    source: Rows,
    target: Rows,
    settings: NetworkSettings | None = None,
    *,
    side: Rows | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    head: Rows | None = None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Minimise ``||h(x) - y||^2 / (2 s^2) + log(s^2) / 2`` (d' dimensions share s), plus the classifier's cross entropy.

    Args:
        source: ``(n, d)`` unit-norm embeddings to be mapped, n >= 20.
        target: ``(n, d')`` unit-norm embeddings of the same items by the other model.
        side: ``(n, k)`` side information on the items, that the old model's owner stored.
        labels: ``(n,)`` classes, rows of ``head``; without both there is no discriminative term.
        head: ``(classes, d')`` frozen class weights of the target model.

    Returns:
        the tensors of an adapter.

    Raises:
        DataError: too few pairs, or shapes that do not fit. EmbeddingError: NaN or infinite values.
    """
    settings = settings or NetworkSettings()
    weight, bias = fit_ridge(source, target)
    if len(source) < 20:
        raise DataError(f"a network needs at least 20 pairs, got {len(source)}; use --method ridge")
    x, y = torch.from_numpy(np.asarray(source, np.float32)), torch.from_numpy(np.asarray(target, np.float32))
    extra = torch.zeros(len(x), 0) if side is None else torch.from_numpy(np.asarray(side, np.float32))
    if len(extra) != len(x):
        raise DataError(f"side information must be of the same items: {len(extra)} rows for {len(x)}")
    classes = None
    if labels is not None and head is not None and settings.discriminative:
        classes = torch.from_numpy(labels), F.normalize(torch.from_numpy(np.asarray(head, np.float32)), dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = Residual(torch.from_numpy(weight), torch.from_numpy(bias), extra.shape[1], settings.hidden)
        _train(network, x, extra, y, classes, settings)
    return network.tensors(uncertain=settings.uncertain)


def _train(
    network: Residual, x: Tensor, side: Tensor, y: Tensor, classes: tuple[Tensor, Tensor] | None, settings: NetworkSettings
) -> None:
    order = torch.randperm(len(x))
    held = max(1, int(settings.held_out * len(x)))
    check, train = order[:held], order[held:]
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, total_steps=settings.steps)
    best, kept = float("inf"), {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(settings.steps):
        rows = train[torch.randint(len(train), (min(settings.batch, len(train)),))]
        mapped, logs = network(x[rows], side[rows])
        loss = _distance(mapped, logs, y[rows], uncertain=settings.uncertain)
        if classes is not None:
            labels, head = classes
            loss = loss + settings.discriminative * F.cross_entropy(settings.scale * mapped @ head.T, labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 49 or step == settings.steps - 1:
            with torch.no_grad():
                mapped, logs = network(x[check], side[check])
                value = float(_distance(mapped, logs, y[check], uncertain=settings.uncertain))
            if value < best:
                best, kept = value, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(kept)


def _distance(mapped: Tensor, logs: Tensor, target: Tensor, *, uncertain: bool) -> Tensor:
    squares = (mapped - target).square().sum(1)
    return (squares * torch.exp(-logs) / 2 + logs / 2).mean() if uncertain else squares.mean()
