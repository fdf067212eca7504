"""The optimum of a linear quadratic fine-tune in closed form, with what each image did to it.

    min_dw  sum_i |J_i dw - r_i|^2  +  mu sum_j |A_j dw|^2  +  lambda |dw|^2

J_i are Jacobians of the images, r_i what is wanted there beyond what the network gives; A_j are Jacobians of anchors, pictures
whose embeddings are to stay. In the dual, only products of Jacobians are needed (kernel ridge with the neural tangent kernel).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samespace.cloud.finetune.linear import Linearised
from samespace.sdk.errors import ConfigError, DataError

__all__ = ["MOST", "Solution", "solve"]

#: Numbers wanted (images times dimensions) that are solved for at once: the matrix has the square of it.
MOST = 12_000
#: Images whose Jacobians are taken at once.
_BATCH = 32


@dataclass(frozen=True, eq=False)
class Solution:
    """An optimum.

    Attributes:
        delta: dw, by parameter.
        fitted: ``(n, d)`` J_i dw.
        left_out: ``(n, d)`` what J_i dw would be, had image i not been there: exact, without solving again.
        drift: ``(m,)`` |A_j dw|, the first-order change of each anchor's embedding.
        bound: what no anchor's first-order change is above, whatever the images: ``|r| / sqrt(mu)``; infinite without anchors.
    """

    delta: dict[str, Tensor]
    fitted: Tensor
    left_out: Tensor
    drift: Tensor
    bound: float


def solve(
    network: Linearised,
    images: Tensor,
    wanted: Tensor,
    *,
    penalty: float = 1e-3,
    anchors: Tensor | None = None,
    hold: float = 1.0,
) -> Solution:
    """Fit to images; all in float64 but the network.

    Args:
        images: ``(n, ...)``.
        wanted: ``(n, d)`` residuals r.
        penalty: lambda > 0.
        anchors: ``(m, ...)`` pictures whose outputs are to stay; none without.
        hold: mu > 0, how much.

    Raises:
        ConfigError: a penalty or a weight that is not above 0.
        DataError: no images, too many of them, or residuals that are not of them.
    """
    if not penalty > 0 or not hold > 0:
        raise ConfigError(f"penalty and hold must be above 0, got {penalty} and {hold}")
    if not len(images) or wanted.ndim != 2 or len(wanted) != len(images):
        raise DataError(f"{len(images)} images and residuals of shape {tuple(wanted.shape)}: one row of each image is needed")
    n, d = wanted.shape
    held = images.new_zeros((0, *images.shape[1:])) if anchors is None else anchors
    if (n + len(held)) * d > MOST:
        raise DataError(
            f"{n} images and {len(held)} anchors of {d} dimensions are {(n + len(held)) * d} numbers to solve for, at most "
            f"{MOST}; give fewer"
        )
    gram = _gram(network, torch.cat([images, held]), d)
    here, there = slice(0, n * d), slice(n * d, None)
    r = wanted.double().flatten()
    # (lambda I + mu A^T A)^-1 by Woodbury's identity.
    inner = gram[there, there] + penalty / hold * torch.eye(len(held) * d, dtype=torch.float64)
    factor = torch.linalg.cholesky(inner) if len(held) else inner
    across = torch.cholesky_solve(gram[there, here], factor) if len(held) else gram[there, here]
    kernel = (gram[here, here] - gram[here, there] @ across) / penalty
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel + torch.eye(n * d, dtype=torch.float64)))
    dual = inverse @ r
    back = -across @ dual
    delta = _pulled(network, images, (dual / penalty).view(n, d))
    if len(held):
        kept = _pulled(network, held, (back / penalty).view(len(held), d))
        delta = {name: delta[name] + kept[name] for name in delta}
    moved = ((gram[there, here] @ dual + gram[there, there] @ back) / penalty).view(len(held), d)
    own = inverse.view(n, d, n, d)[torch.arange(n), :, torch.arange(n), :]
    missed = torch.linalg.solve(own, dual.view(n, d, 1))[..., 0]
    return Solution(
        delta=delta,
        fitted=wanted.double() - dual.view(n, d),
        left_out=wanted.double() - missed,
        drift=moved.norm(dim=1),
        bound=float(r.norm()) / hold**0.5 if len(held) else float("inf"),
    )


def _gram(network: Linearised, images: Tensor, d: int) -> Tensor:
    """``(n d, n d)`` float64 products of all Jacobians; one parameter's at a time, so that no more are in memory."""
    total = torch.zeros((len(images) * d, len(images) * d), dtype=torch.float64)
    for name in network.shapes:
        parts = [network.jacobian(part, name).flatten(0, 1) for part in images.split(_BATCH)]
        rows = torch.cat(parts).double()
        total += rows @ rows.T
    return total


def _pulled(network: Linearised, images: Tensor, rows: Tensor) -> dict[str, Tensor]:
    total = network.zero()
    for part, wanted in zip(images.split(_BATCH), rows.to(images.dtype).split(_BATCH), strict=True):
        for name, found in network.pull(part, wanted).items():
            total[name] += found
    return total
