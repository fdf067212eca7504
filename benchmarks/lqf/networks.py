"""The networks that are adapted: a shallow one and a deep one, with ReLU or with leaky ReLU, trained on the known classes."""

from __future__ import annotations

from pathlib import Path

import torch
from data import Task
from torch import nn
from torch.nn import functional as F

from samespace.edge.models.leaky import leaky
from samespace.edge.models.registry import build_model
from samespace.sdk.files import atomic_write

__all__ = ["NETWORKS", "accuracy", "pretrained"]

#: Convolutions in each: 4 and 27.
NETWORKS = {
    "shallow": ("residual", {"dim": 64, "image_size": 32, "width": 8, "depth": 1, "stages": 3, "shortcut": False}),
    "deep": ("residual", {"dim": 64, "image_size": 32, "width": 8, "depth": 4, "stages": 3}),
}
_EPOCHS, _BATCH, _PICTURES = 6, 128, 20_000


class Small(nn.Module):
    """A network of ours, without its embedding's norm; ``(n, 3, 28, 28)`` -> ``(n, 64)``."""

    def __init__(self, name: str, slope: float) -> None:
        super().__init__()
        family, arguments = NETWORKS[name]
        network = build_model(family, arguments)
        self.body = leaky(network, slope) if slope else network
        self.pad = nn.ZeroPad2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.pad(x))


def pretrained(name: str, slope: float, task: Task, seed: int, folder: Path) -> nn.Module:
    """Trained with cross-entropy on the known classes; kept in the folder."""
    torch.manual_seed(seed)
    network = Small(name, slope)
    path = folder / f"{name}-{slope}-{seed}.pt"
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    head = nn.Linear(64, task.classes)
    images, labels = (part[:_PICTURES] for part in task.train)
    steps = _EPOCHS * (len(images) // _BATCH)
    optimiser = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(images), generator=chance)
        for start in range(0, len(images) - _BATCH + 1, _BATCH):
            rows = order[start : start + _BATCH]
            optimiser.zero_grad()
            F.cross_entropy(head(network(images[rows])), labels[rows]).backward()
            optimiser.step()
            schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    network.eval()
    share = accuracy(nn.Sequential(network, head), task.validation)
    print(f"{name}, slope {slope}, seed {seed}: {share:.3f} of the known classes", flush=True)
    atomic_write(path, _bytes(network))
    return network


def accuracy(network: nn.Module, part: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Share of images whose largest output is their class."""
    with torch.no_grad():
        outputs = torch.cat([network(images) for images in part[0].split(500)])
    return float((outputs.argmax(1) == part[1]).double().mean())


def _bytes(network: nn.Module) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.getvalue()
