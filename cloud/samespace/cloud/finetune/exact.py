"""The optimum of a linear quadratic fine-tune in closed form, with what each image did to it.

In the dual, only products of Jacobians are needed (kernel ridge with the neural tangent kernel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samespace.cloud.finetune.linear import Linearised
from samespace.cloud.finetune.problem import Problem
from samespace.sdk.errors import DataError

__all__ = ["MOST", "Solution", "solve"]

#: Numbers wanted (images times dimensions) that are solved for at once: the matrix has the square of it.
MOST = 12_000
#: Rows of a Jacobian taken at once, and numbers of it in memory: parameters are taken in blocks of so many.
_ROWS, _NUMBERS = 2048, 2**27
#: Numbers of a block above which its Jacobian is never whole in memory.
_WIDE = 2**17


@dataclass(frozen=True, eq=False)
class Solution:
    """An optimum.

    Attributes:
        delta: dw, by parameter.
        fitted: ``(n, d)`` J_i dw.
        left_out: ``(n, d)`` what J_i dw would be, had image i not been there: exact, without solving again.
        drift: ``(m,)`` |A_j dw|, the first-order change of each anchor's embedding.
        influence: ``(q, n, d)`` how far image i moved what query q is given: J_q dw less what it would be without the image.
    """

    delta: dict[str, Tensor]
    fitted: Tensor
    left_out: Tensor
    drift: Tensor
    influence: Tensor


def solve(network: Linearised, problem: Problem, queries: Tensor | None = None) -> Solution:
    """The optimum; in float64 but for the network.

    Args:
        queries: ``(q, ...)`` pictures of whose outputs it is asked which image moved them.

    Raises:
        DataError: too many images and anchors.
    """
    images, held, penalty = problem.images, problem.held, problem.penalty
    n, d = problem.wanted.shape
    asked = problem.images[:0] if queries is None else queries
    if (n + len(held)) * d > MOST:
        raise DataError(
            f"{n} images and {len(held)} anchors of {d} dimensions are {(n + len(held)) * d} numbers to solve for, at most "
            f"{MOST}; give fewer"
        )
    gram = _gram(network, torch.cat([images, held, asked]), d)
    here, there = slice(0, n * d), slice(n * d, (n + len(held)) * d)
    queried = slice((n + len(held)) * d, None)
    wanted = problem.wanted.to(gram)
    # (lambda I + mu A^T A)^-1 by Woodbury's identity.
    inner = gram[there, there] + penalty / problem.hold * torch.eye(len(held) * d).to(gram)
    factor = torch.linalg.cholesky(inner) if len(held) else inner
    across = torch.cholesky_solve(gram[there, here], factor) if len(held) else gram[there, here]
    kernel = (gram[here, here] - gram[here, there] @ across) / penalty
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel + torch.eye(n * d).to(gram)))
    dual = inverse @ wanted.flatten()
    back = -across @ dual
    delta = network.pull(images, (dual / penalty).view(n, d).to(images.dtype))
    if len(held):
        kept = network.pull(held, (back / penalty).view(len(held), d).to(images.dtype))
        delta = {name: delta[name] + kept[name] for name in delta}
    moved = ((gram[there, here] @ dual + gram[there, there] @ back) / penalty).view(len(held), d)
    own = inverse.view(n, d, n, d)[torch.arange(n), :, torch.arange(n), :]
    missed = torch.linalg.solve(own, dual.view(n, d, 1))[..., 0]
    reach = ((gram[queried, here] - gram[queried, there] @ across) / penalty @ inverse).view(len(asked), d, n, d)
    return Solution(
        delta=delta,
        fitted=wanted - dual.view(n, d),
        left_out=wanted - missed,
        drift=moved.norm(dim=1),
        influence=torch.einsum("qcnd,nd->qnc", reach, missed),
    )


def _gram(network: Linearised, images: Tensor, d: int) -> Tensor:
    """``(n d, n d)`` float64 products of all Jacobians, block of parameters by block, so that no more are in memory."""
    count = len(images) * d
    total = torch.zeros((count, count), dtype=torch.float64, device=images.device)
    for names in _blocks(network, count):
        if sum(network.shapes[name].numel() for name in names) > _WIDE:
            total += _wide_gram(network, images, names)
            continue
        parts = [network.jacobian(part, names).flatten(0, 1) for part in images.split(max(1, _ROWS // d))]
        rows = torch.cat(parts)
        for columns in rows.split(max(1, _NUMBERS // count), 1):
            wide = columns.double()
            total.addmm_(wide, wide.T)
    return total


def _wide_gram(network: Linearised, images: Tensor, names: Sequence[str]) -> Tensor:
    """The same of a wide layer, an image's rows at a time: a tangent of every image along each costs less than a product."""
    parts = []
    for image in images:
        along = network.jacobian(image[None], names)[0]
        parts.append(network.tangents(images, names, along).flatten(1))
    return torch.cat(parts).double()


def _blocks(network: Linearised, rows: int) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    size = 0
    for name, shape in network.shapes.items():
        if blocks[-1] and ((size + shape.numel()) * rows > _NUMBERS or shape.numel() > _WIDE):
            blocks.append([])
            size = 0
        blocks[-1].append(name)
        size += shape.numel()
    return blocks
