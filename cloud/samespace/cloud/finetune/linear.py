"""A network as its first-order Taylor expansion at its weights: linear in what is trained, so that fine-tuning is convex.

LQF (Achille et al., CVPR 2021, arXiv 2012.11140, eq. 2): ``f_lin(x; dw) = f(x; w0) + J(x) dw`` with J the Jacobian at w0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from samespace.sdk.errors import ConfigError

__all__ = ["Delta", "Linearised", "chosen"]

#: Images at once.
_BATCH = 64
#: Parameter -> its change dw, of the parameter's shape.
Delta = Mapping[str, Tensor]


class Linearised:
    """A network that may change in some of its parameters, to first order.

    Args:
        model: ``(n, ...)`` -> ``(n, d)``; evaluated as it stands, its statistics do not move.
        trained: names of parameters, or of the modules that hold them; all parameters if there are none.
        then: what comes after the model, without parameters: the norm of an embedding.

    Attributes:
        model, then: as given.
        shapes: parameter -> shape, of what is trained.

    Raises:
        ConfigError: a name that nothing has, or no parameter at all.
    """

    def __init__(self, model: nn.Module, trained: Sequence[str] = (), then: nn.Module | None = None) -> None:
        self.model, self.then = model.eval(), then or nn.Identity()
        held = {name: parameter.detach() for name, parameter in model.named_parameters()}
        names = chosen(model, trained)
        self._at = {name: held[name] for name in names}
        self._fixed = {name: held[name] for name in held if name not in self._at}
        self._buffers = dict(model.named_buffers())
        self.shapes = {name: parameter.shape for name, parameter in self._at.items()}

    def outputs(self, images: Tensor) -> Tensor:
        """``(n, d)``: f(x; w0)."""
        with torch.no_grad():
            return self._called(self._at, images)

    def tangent(self, images: Tensor, delta: Delta) -> Tensor:
        """``(n, d)``: J(x) dw, by one forward pass that carries both streams.

        Raises:
            ConfigError: ``delta`` is not of the trained parameters.
        """
        self._same(delta)
        whole = {name: delta[name] for name in self._at}
        parts = [jvp(lambda at, part=part: self._called(at, part), (self._at,), (whole,))[1] for part in images.split(_BATCH)]
        return torch.cat(parts).detach()

    def pull(self, images: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """J(x)^T rows, summed over images, by one backward pass; ``rows`` is ``(n, d)``."""
        total = self.zero()
        for part, wanted in zip(images.split(_BATCH), rows.split(_BATCH), strict=True):
            back = vjp(lambda at, part=part: self._called(at, part), self._at)[1]
            for name, found in back(wanted)[0].items():
                total[name] += found.detach()
        return total

    def jacobian(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """``(n, d, p)``: J(x) of the p numbers of some parameters, image by image."""

        def of_one(values: Delta, image: Tensor) -> Tensor:
            return self._called({**self._at, **values}, image[None])[0]

        found = vmap(jacrev(of_one), in_dims=(None, 0))({name: self._at[name] for name in names}, images)
        return torch.cat([found[name].detach().flatten(2) for name in names], 2)

    def tangents(self, images: Tensor, names: Sequence[str], rows: Tensor) -> Tensor:
        """``(k, n, d)``: J(x) dw of k changes of some parameters, ``rows`` ``(k, p)`` as :meth:`jacobian` orders them."""
        shapes = [self.shapes[name] for name in names]
        parts = rows.split([shape.numel() for shape in shapes], 1)
        changes = {name: part.reshape(-1, *shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        base = {name: self._at[name] for name in names}

        def along(change: Delta, part: Tensor) -> Tensor:
            return jvp(lambda values: self._called({**self._at, **values}, part), (base,), (dict(change),))[1]

        found = [vmap(along, in_dims=(0, None))(changes, part) for part in images.split(_BATCH)]
        return torch.cat(found, 1).detach()

    def zero(self) -> dict[str, Tensor]:
        """No change."""
        return {name: torch.zeros_like(value) for name, value in self._at.items()}

    def _called(self, at: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return self.then(functional_call(self.model, {**self._fixed, **self._buffers, **at}, (images,)))

    def _same(self, delta: Delta) -> None:
        wrong = {name: tuple(value.shape) for name, value in delta.items() if self.shapes.get(name) != value.shape}
        if wrong or set(delta) != set(self.shapes):
            named = next(iter(wrong or set(delta) ^ set(self.shapes)))
            raise ConfigError(f"the change of weights is not of this network's trained parameters: {named}")


def chosen(model: nn.Module, trained: Sequence[str]) -> list[str]:
    """The parameters that the names mean: their own, or those of modules that hold them; all without names.

    Raises:
        ConfigError: a name that nothing has, or no parameter at all.
    """
    known = [name for name, _ in model.named_parameters()]
    for prefix in trained:
        if not any(_within(name, prefix) for name in known):
            modules = ", ".join(dict.fromkeys(name.split(".")[0] for name in known))
            raise ConfigError(f"the network has no parameters called {prefix!r}; it has: {modules}")
    found = [name for name in known if not trained or any(_within(name, prefix) for prefix in trained)]
    if not found:
        raise ConfigError("the network has no parameters that could be trained")
    return found


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
