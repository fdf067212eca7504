"""The inverse of ``J^T J + lambda`` to a Kronecker-factored approximation, layer by layer: a preconditioner.

Of squares, the curvature does not change with dw, so its factors are estimated once (LQF, section 3; K-FAC: Martens & Grosse,
ICML 2015, arXiv 1503.05671; convolutions: Grosse & Martens, ICML 2016, arXiv 1602.01407). The factors, and the damping that is
split between them by pi, are curvlinops'; of layers that it has no factors for (norms, depthwise convolutions) the block itself
is inverted, or its diagonal where it is large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from curvlinops import KFACInverseLinearOperator, KFACLinearOperator
from torch import Tensor, nn

from samespace.cloud.finetune.linear import Delta, Linearised
from samespace.cloud.finetune.problem import Problem

__all__ = ["Precondition", "kfac"]

#: Applies an approximate inverse of the curvature to a gradient.
Precondition = Callable[[Delta], dict[str, Tensor]]

#: Images at once; numbers of a layer without factors whose whole block is inverted, and of which the diagonal is taken; the
#: largest factor.
_BATCH, _DENSE, _DIAGONAL, _FACTOR = 64, 2048, 2**15, 4096


def kfac(network: Linearised, problem: Problem) -> Precondition:
    """Factors A (inputs of a layer) and B (gradients at its outputs, of each output in turn), of the images and the anchors.

    Returns:
        gradient -> about ``(J^T J + lambda)^-1 gradient``.
    """
    module = _Weighted(network)
    factored = _factored(network)
    images = torch.cat([problem.images, problem.held])
    layers = {name: network.model.get_parameter(name) for name in factored}
    frozen = [layer for layer in layers.values() if not layer.requires_grad]
    data = []
    for rows, weight in ((problem.images, 1.0), (problem.held, problem.hold)):
        for part in rows.split(_BATCH) if len(rows) else ():
            nothing = part.new_zeros((len(part), problem.wanted.shape[1]))
            data.append(({"images": part, "weight": part.new_tensor(weight)}, nothing))
    # The Hessian of a sum of squares is 2 J^T J.
    for layer in frozen:
        layer.requires_grad_(True)
    whole = KFACLinearOperator(
        module,
        nn.MSELoss(reduction="sum"),
        list(layers.values()),
        data,
        fisher_type="type-2",
        check_deterministic=False,
        batch_size_fn=lambda entry: len(entry["images"]),  # type: ignore[index]
        separate_weight_and_bias=False,
    )
    inverse = KFACInverseLinearOperator(whole, damping=2 * problem.penalty, use_heuristic_damping=True, min_damping=1e-12)
    # The factors are found at the first product.
    inverse @ [torch.zeros_like(layer) for layer in layers.values()]
    for layer in frozen:
        layer.requires_grad_(False)
    blocks = [names for names in _modules(network) if names[0] not in factored]
    weights = images.new_tensor([1.0] * len(problem.images) + [problem.hold] * len(problem.held))
    solvers = [_solver(network, names, images, weights.sqrt(), problem.penalty) for names in blocks]

    def precondition(gradient: Delta) -> dict[str, Tensor]:
        found: Any = inverse @ [gradient[name] for name in factored]
        solved: dict[str, Tensor] = {name: 2 * value for name, value in zip(factored, found, strict=True)}
        for names, solver in zip(blocks, solvers, strict=True):
            flat = solver(torch.cat([gradient[name].flatten() for name in names]))
            parts = flat.split([network.shapes[name].numel() for name in names])
            solved |= {name: part.view(network.shapes[name]) for name, part in zip(names, parts, strict=True)}
        return {name: solved[name] for name in network.shapes}

    return precondition


class _Weighted(nn.Module):
    """The network of images times the root of what their squares weigh."""

    def __init__(self, network: Linearised) -> None:
        super().__init__()
        self.model, self.then = network.model, network.then

    def forward(self, entry: dict[str, Tensor]) -> Tensor:
        return entry["weight"].sqrt() * self.then(self.model(entry["images"]))


def _solver(network: Linearised, names: list[str], images: Tensor, roots: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    size = sum(network.shapes[name].numel() for name in names)
    if size > _DIAGONAL:
        scale = _mean_diagonal(network, names, images, roots) + penalty
        return lambda gradient: gradient / scale
    parts = (
        (network.jacobian(part, names) * root[:, None, None]).flatten(0, 1)
        for part, root in zip(images.split(_BATCH), roots.split(_BATCH), strict=True)
    )
    if size > _DENSE:
        diagonal = sum((part.square().sum(0) for part in parts), images.new_zeros(size)) + penalty
        return lambda gradient: gradient / diagonal
    block = penalty * torch.eye(size, dtype=torch.float64, device=images.device)
    for part in parts:
        block.addmm_(part.double().T, part.double())
    factor = torch.linalg.cholesky(block)
    return lambda gradient: torch.cholesky_solve(gradient.double()[:, None], factor)[:, 0].to(gradient.dtype)


def _mean_diagonal(network: Linearised, names: list[str], images: Tensor, roots: Tensor, draws: int = 8) -> float:
    """Of J^T J in some parameters: a row of random signs has |J^T s|^2 for its trace, on the average."""
    chance = torch.Generator().manual_seed(0)
    rows = network.outputs(images)
    total = 0.0
    for _ in range(draws):
        signs = (torch.randint(0, 2, rows.shape, generator=chance) * 2 - 1).to(rows)
        pulled = network.pull(images, signs * roots[:, None])
        total += sum(float(pulled[name].double().square().sum()) for name in names)
    return total / draws / sum(network.shapes[name].numel() for name in names)


def _modules(network: Linearised) -> list[list[str]]:
    """Trained parameters of each layer."""
    layers: dict[str, list[str]] = {}
    for name in network.shapes:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return list(layers.values())


def _factored(network: Linearised) -> list[str]:
    names = []
    for path, layer in network.model.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1):
            if max(len(layer.weight), layer.weight[0].numel()) > _FACTOR:
                continue
            own = [f"{path}.{name}".lstrip(".") for name, _ in layer.named_parameters()]
            names += [name for name in own if name in network.shapes]
    return names
