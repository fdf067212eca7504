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

#: Images at once; and numbers of a layer without factors whose whole block is inverted.
_BATCH, _DENSE = 64, 2048


def kfac(network: Linearised, problem: Problem) -> Precondition:
    """Factors A (inputs of a layer) and B (gradients at its outputs, of each output in turn), of the images and the anchors.

    Returns:
        gradient -> about ``(J^T J + lambda)^-1 gradient``.
    """
    module = nn.Sequential(network.model, network.then)
    factored = _factored(network)
    images = torch.cat([problem.images, problem.held])
    layers = {name: module.get_parameter(f"0.{name}") for name in factored}
    frozen = [layer for layer in layers.values() if not layer.requires_grad]
    outputs = torch.zeros(len(images), problem.wanted.shape[1], dtype=images.dtype)
    data = list(zip(images.split(_BATCH), outputs.split(_BATCH), strict=True))
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
        separate_weight_and_bias=False,
    )
    inverse = KFACInverseLinearOperator(whole, damping=2 * problem.penalty, use_heuristic_damping=True, min_damping=1e-12)
    # The factors are found at the first product.
    inverse @ [torch.zeros_like(layer) for layer in layers.values()]
    for layer in frozen:
        layer.requires_grad_(False)
    blocks = [names for names in _modules(network) if names[0] not in factored]
    solvers = [_solver(network, names, images, problem.penalty) for names in blocks]

    def precondition(gradient: Delta) -> dict[str, Tensor]:
        found: Any = inverse @ [gradient[name] for name in factored]
        solved: dict[str, Tensor] = {name: 2 * value for name, value in zip(factored, found, strict=True)}
        for names, solver in zip(blocks, solvers, strict=True):
            flat = solver(torch.cat([gradient[name].flatten() for name in names]))
            parts = flat.split([network.shapes[name].numel() for name in names])
            solved |= {name: part.view(network.shapes[name]) for name, part in zip(names, parts, strict=True)}
        return {name: solved[name] for name in network.shapes}

    return precondition


def _solver(network: Linearised, names: list[str], images: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    size = sum(network.shapes[name].numel() for name in names)
    parts = (network.jacobian(part, names).flatten(0, 1) for part in images.split(_BATCH))
    if size > _DENSE:
        diagonal = sum((part.square().sum(0) for part in parts), torch.zeros(size, dtype=images.dtype)) + penalty
        return lambda gradient: gradient / diagonal
    block = penalty * torch.eye(size, dtype=torch.float64)
    for part in parts:
        block.addmm_(part.double().T, part.double())
    factor = torch.linalg.cholesky(block)
    return lambda gradient: torch.cholesky_solve(gradient.double()[:, None], factor)[:, 0].to(gradient.dtype)


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
            own = [f"{path}.{name}".lstrip(".") for name, _ in layer.named_parameters()]
            names += [name for name in own if name in network.shapes]
    return names
