"""Ways to teach a network new classes from a few images; all start from the same network.

``probe``: the head alone, in closed form. Of the linearised network, which starts from that head: ``exact``, ``kfac``
(preconditioned descent by batches), ``kfac-cg`` (preconditioned conjugate gradients, a fifth of the steps), ``sgd`` and
``sgd-long`` (plain descent, as many steps as ``kfac`` and five times as many), ``ce`` (cross-entropy, descent as long),
``ce-kfac`` (the same, preconditioned, in as many steps as ``kfac``). Of the network itself: ``nonlinear`` (cross-entropy, as
many steps as ``ce``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samespace.cloud.finetune import Linearised, Problem, solve
from samespace.cloud.finetune.iterative import approach
from samespace.cloud.finetune.kfac import Precondition, kfac
from samespace.cloud.finetune.problem import class_targets
from samespace.cloud.finetune.stochastic import descend, steepest

__all__ = ["CHOICES", "LONG", "METHODS", "SHORT", "learnt"]

#: Steps of K-FAC and of plain descent beside it; of what is trained longer.
SHORT, LONG = 60, 300
BATCH = 32

#: Method -> settings to choose from, on validation images.
CHOICES: dict[str, list[dict[str, float]]] = {
    "probe": [{"penalty": value} for value in (0.01, 0.1, 1.0, 10.0)],
    "exact": [{"penalty": value} for value in (1.0, 10.0, 100.0, 1000.0)],
    "kfac": [{"penalty": 100.0, "rate": rate} for rate in (2.0, 4.0, 8.0, 16.0)],
    "kfac-cg": [{"penalty": 100.0}],
    "sgd": [{"penalty": 100.0, "rate": rate} for rate in (2.0, 4.0, 8.0)],
    "sgd-long": [{"penalty": 100.0, "rate": rate} for rate in (2.0, 4.0, 8.0)],
    "ce": [{"probe": probe, "rate": rate} for probe in (0, 1) for rate in (1e-4, 1e-3, 3e-3)],
    "ce-kfac": [{"penalty": 100.0, "rate": rate} for rate in (4.0, 30.0, 200.0)],
    "nonlinear": [{"probe": 0, "rate": rate} for rate in (1e-3, 3e-3, 1e-2, 3e-2)]
    + [{"probe": 1, "rate": rate} for rate in (1e-4, 1e-3, 3e-3)],
}
METHODS = tuple(CHOICES)
#: Of the ridge regression that the head of linearised networks comes from.
_PROBE = 1.0


def learnt(
    method: str, network: nn.Module, images: Tensor, labels: Tensor, seed: int, asked: Tensor, settings: Mapping[str, float]
) -> Tensor:
    """``(n, classes)`` scores of the asked images after learning.

    Args:
        method: of :data:`METHODS`.
        network: ``(n, 3, 28, 28)`` -> ``(n, 64)``.
        images, labels: to learn from.
        seed: of a random head and of the order of images.
        asked: ``(n, 3, 28, 28)``.
        settings: of :data:`CHOICES`.
    """
    classes = int(labels.max()) + 1
    penalty = settings.get("penalty", _PROBE)
    if method == "nonlinear":
        head = _probe(network, images, labels, _PROBE) if settings["probe"] else _random(classes, seed)
        return _nonlinear(nn.Sequential(network, head), images, labels, seed, asked, settings["rate"])
    if method == "probe":
        return _scores(nn.Sequential(network, _probe(network, images, labels, penalty)), asked)
    head = _random(classes, seed) if settings.get("probe") == 0 else _probe(network, images, labels, _PROBE)
    linear = Linearised(nn.Sequential(network, head))
    problem = Problem(images, class_targets(labels, classes) - linear.outputs(images), penalty)
    if method == "exact":
        delta = solve(linear, problem).delta
    elif method == "ce":
        delta = _cross_entropy(linear, images, labels, seed, LONG, settings["rate"])
    elif method == "kfac-cg":
        delta = approach(linear, problem, steps=SHORT // 5, precondition=kfac(linear, problem)).delta
    else:
        factors = kfac(linear, problem) if "kfac" in method else None
        rate = settings["rate"] / steepest(linear, problem, factors)
        if method == "ce-kfac":
            delta = _cross_entropy(linear, images, labels, seed, SHORT, rate, factors)
        else:
            steps = LONG if method == "sgd-long" else SHORT
            delta = descend(linear, problem, steps=steps, rate=rate, precondition=factors, batch=BATCH, seed=seed)
    return linear.outputs(asked) + linear.tangent(asked, delta)


def _random(classes: int, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(64, classes)


def _probe(network: nn.Module, images: Tensor, labels: Tensor, penalty: float) -> nn.Linear:
    """Ridge regression of the class targets."""
    head = _random(int(labels.max()) + 1, 0)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        found = solve(Linearised(head), Problem(network(images), class_targets(labels, head.out_features), penalty)).delta
        head.weight.copy_(found["weight"])
        head.bias.copy_(found["bias"])
    return head


def _nonlinear(start: nn.Module, images: Tensor, labels: Tensor, seed: int, asked: Tensor, rate: float) -> Tensor:
    # Statistics stay, as in a linearised network.
    model = copy.deepcopy(start).eval()
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, LONG)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(LONG):
        rows = torch.randint(len(images), (BATCH,), generator=chance)
        optimiser.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        # Without it, a rate that is best for one draw of images runs away for another.
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return _scores(model, asked)


def _cross_entropy(
    linear: Linearised,
    images: Tensor,
    labels: Tensor,
    seed: int,
    steps: int,
    rate: float,
    precondition: Precondition | None = None,
) -> dict[str, Tensor]:
    """Descent on the cross-entropy of the linearised network: by the mean without a preconditioner, by the sum with one."""
    base, chance = linear.outputs(images), torch.Generator().manual_seed(seed)
    delta, speed = linear.zero(), linear.zero()
    for step in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=chance)
        scores = base[rows] + linear.tangent(images[rows], delta)
        missed = scores.softmax(1) - F.one_hot(labels[rows], scores.shape[1])
        gradient = linear.pull(images[rows], missed * (len(images) / BATCH if precondition else 1 / BATCH))
        if precondition is not None:
            gradient = precondition(gradient)
        length = rate * (1 - step / steps)
        for name, value in gradient.items():
            speed[name] = 0.9 * speed[name] + (0.1 if precondition else 1.0) * value
            delta[name] -= length * speed[name]
    return delta


def _scores(model: nn.Module, asked: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in asked.split(500)])
