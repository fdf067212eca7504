"""One step of a family: objectives of several models, some of whose parameters are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from samespace.cloud.training.conflicts import project_conflicts

__all__ = ["FamilyGradients", "family_backward"]


class FamilyGradients:
    """Gathers the gradients of one step, objective by objective, so that no two need be in memory at once.

    Call :meth:`backward` for each objective, then :meth:`finish`; after that every ``.grad`` is ready for the optimisers. The
    gradients of the parameters that are not shared must have been set to None before.

    Args:
        shared: parameters that several objectives reach.
        project: whether conflicting gradients of the shared parameters are projected before they are summed, see
            :func:`samespace.cloud.training.conflicts.project_conflicts`.
        generator: on the CPU, of the projections' order; the same in all processes.
        average: of a flat tensor over all processes, so that many of them project what one would; None where there is one.
        private: parameters that one objective reaches; needed for ``average`` alone.
    """

    def __init__(
        self,
        shared: Sequence[nn.Parameter],
        *,
        project: bool = False,
        generator: torch.Generator | None = None,
        average: Callable[[Tensor], Tensor] | None = None,
        private: Sequence[nn.Parameter] = (),
    ) -> None:
        self.shared, self.private = list(shared), list(private)
        self.project, self.generator, self.average = project, generator, average
        self._gathered: list[Tensor] = []
        self._reached = [False] * len(self.shared)
        for parameter in self.shared:
            parameter.grad = None

    def backward(self, objective: Tensor, retain_graph: bool = False) -> None:
        """Add one objective, a scalar.

        Args:
            objective: with gradient.
            retain_graph: keep its graph: other objectives go through the same nodes, not through the same parameters alone.
        """
        objective.backward(retain_graph=retain_graph)
        if not self.project:
            return  # they add up where they are
        reached = [parameter.grad is not None for parameter in self.shared]
        self._reached = [a or b for a, b in zip(self._reached, reached, strict=True)]
        if any(reached):
            self._gathered.append(_flat([_gradient(parameter) for parameter in self.shared]))
        for parameter in self.shared:
            parameter.grad = None

    def finish(self) -> None:
        """Give the shared parameters their gradients; a parameter that no objective reached keeps None."""
        private = [parameter for parameter in self.private if parameter.grad is not None]
        if not self.project:
            self._average_in_place([*private, *(parameter for parameter in self.shared if parameter.grad is not None)])
            return
        self._average_in_place(private)
        if not self._gathered:
            return
        rows = [self.average(row) for row in self._gathered] if self.average else self._gathered
        parts = _parts(project_conflicts(rows, self.generator), self.shared)
        for parameter, part, reached in zip(self.shared, parts, self._reached, strict=True):
            parameter.grad = part if reached else None
        self._gathered = []

    def _average_in_place(self, parameters: Sequence[nn.Parameter]) -> None:
        if self.average is None or not parameters:
            return
        mean = self.average(_flat([_gradient(parameter) for parameter in parameters]))
        for parameter, part in zip(parameters, _parts(mean, parameters), strict=True):
            parameter.grad = part


def family_backward(
    objectives: Mapping[str, Tensor],
    shared: Sequence[nn.Parameter],
    *,
    project: bool,
    generator: torch.Generator | None = None,
) -> None:
    """Set the gradients of all parameters that some objectives reach: :class:`FamilyGradients`, for objectives already there.

    Args:
        objectives: name -> scalar with gradient; their graphs may overlap.
        shared: parameters that several of them reach. Those that one reaches get its plain gradient, and must have none yet.
        project: whether conflicting gradients of the shared ones are projected; without, they get the gradient of the sum.
        generator: on the CPU, of the projections' order.
    """
    gradients = FamilyGradients(shared, project=project, generator=generator)
    left = len(objectives)
    for objective in objectives.values():
        left -= 1
        gradients.backward(objective, retain_graph=left > 0)
    gradients.finish()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    # Channels last or not, a tensor is read in the order of its indices.
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _parts(flat: Tensor, like: Sequence[nn.Parameter]) -> list[Tensor]:
    """The opposite of :func:`_flat`: copies, laid out as the parameters are."""
    sizes = [parameter.numel() for parameter in like]
    parts = zip(flat.split(sizes), like, strict=True)
    return [torch.empty_like(parameter).copy_(part.view(parameter.shape)) for part, parameter in parts]
