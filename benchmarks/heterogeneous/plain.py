"""A plain PyTorch training loop, as a user would write it: what the product's trainer is compared with.

It sees the same data, batches and augmentation and has the same schedule, networks and forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samespace.cloud.data.augment import Augment, augment_batch
from samespace.cloud.data.resize import resize_batch
from samespace.cloud.training.order import BatchOrder

__all__ = ["Student", "batches", "channels_last", "fit"]

#: Of the cosine softmax, as in the recipes.
SCALE = 16.0
#: embedding, labels, the teacher's embedding of the same pictures -> the loss.
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Student:
    """A network with its objective.

    Attributes:
        network: ``(n, 3, s, s)`` -> ``(n, d)``, not normalised.
        objective: what it minimises.
        parameters: of the objective, such as class weights.
    """

    network: nn.Module
    objective: Objective
    parameters: Iterable[nn.Parameter] = ()


def batches(pictures: Tensor, labels: Tensor, size: int, batch: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """``(n, 3, size, size)`` float32 and ``(n,)`` labels: augmented, scaled to [-1, 1].

    The order is that of the trainer's second stage, so that both see the same pictures at the same step.
    """
    order = BatchOrder(len(labels), batch, seed, "edges")
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = order.indices(step)
        views = resize_batch(augment_batch(pictures[rows], generator, Augment()), size)
        yield ((views.float() - 127.5) / 127.5).permute(0, 3, 1, 2), labels[rows]


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its weights in the order that convolutions on a CPU like best, as the product's trainer has them."""
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - missing in the stubs


def fit(
    students: Mapping[str, Student],
    teacher: Callable[[Tensor], Tensor],
    data: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
) -> None:
    """Train all students on the same batches: AdamW with weight decay 0.02 on matrices, one cycle.

    Args:
        students: name -> network and objective; trained in place.
        teacher: pictures -> unit rows, without gradient.
        data: batches.
        steps: how many there are.
        rate: the peak.
    """
    optimisers, schedules = {}, {}
    for name, student in students.items():
        parameters = [*student.network.parameters(), *student.parameters]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.02},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimisers[name] = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)
        schedules[name] = torch.optim.lr_scheduler.OneCycleLR(optimisers[name], rate, steps, pct_start=0.2)
        student.network.train()
    for views, labels in data:
        with torch.no_grad():
            target = teacher(views)
        for name, student in students.items():
            embedding = F.normalize(student.network(views), dim=1)
            optimisers[name].zero_grad(set_to_none=True)
            student.objective(embedding, labels, target).backward()
            optimisers[name].step()
            schedules[name].step()
