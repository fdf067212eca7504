"""Gradients of several objectives that pull the same weights in opposite directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["project_conflicts"]


def project_conflicts(gradients: Sequence[Tensor | None], generator: torch.Generator | None = None) -> Tensor:
    r"""The sum of gradients of which each has lost what opposes another.

    For each i, and the others j in random order: where ``g_i . g_j < 0``, ``g_i <- g_i - (g_i . g_j / ||g_j||^2) g_j``, with
    g_j as it came and g_i as it is by then; the results are summed. This is PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782,
    algorithm 1), which SFSC (Wu et al., CVPR 2023) uses between the sub-models of one network. Nothing changes where no two
    gradients conflict.

    Every inner product follows from those between the given gradients, so the work is one ``(k, k)`` product and one sum.

    Args:
        gradients: k of them, ``(n,)`` each, of the same parameters; None stands for zeros.
        generator: on the CPU, of the order; None takes torch's global one.

    Returns:
        ``(n,)``.

    Raises:
        ValueError: not one gradient is a tensor.
    """
    rows = [gradient for gradient in gradients if gradient is not None]
    if not rows:
        raise ValueError("project_conflicts: needs the gradient of at least one objective")
    stacked = torch.stack(rows)
    products = (stacked @ stacked.T).to("cpu", torch.float64)
    # Row i: the i-th result as a combination of the given gradients.
    parts = torch.eye(len(rows), dtype=torch.float64)
    for i in range(len(rows)):
        for j in torch.randperm(len(rows), generator=generator).tolist():
            inner = parts[i] @ products[:, j]
            if i != j and inner < 0:
                parts[i, j] -= inner / products[j, j]
    return parts.sum(0).to(stacked) @ stacked
