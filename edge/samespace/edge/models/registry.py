"""Model families by name, from the entry-point group ``samespace.models``.

A family is a builder: keyword arguments in, network out. ``export`` rebuilds any model from its record through
:func:`build_model`, without importing the floor that the family lives on; another distribution adds a family with one file and
one line::

    [project.entry-points."samespace.models"]
    my_family = "my_package.my_family:build"
"""

import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from torch import nn

from samespace.sdk.errors import ConfigError

__all__ = ["GROUP", "ModelFamily", "build_model", "families"]

#: The entry-point group.
GROUP = "samespace.models"


class ModelFamily(Protocol):
    """Builds a network of one family.

    The network maps ``(n, 3, image_size, image_size)`` float32, normalised by the model's mean and std, to ``(n, dim)``
    float32, *not* L2-normalised. All arguments are plain JSON values, so that a model record can hold them; those
    beyond ``dim`` and ``image_size`` are the family's own and have defaults.

    Raises:
        ConfigError: an argument that cannot work.
    """

    def __call__(self, *, dim: int, image_size: int, **arguments: Any) -> nn.Module: ...


def families() -> dict[str, EntryPoint]:
    """All installed families, name -> entry point (not loaded), sorted by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def build_model(family: str, arguments: Mapping[str, Any], *, weights_follow: bool = False) -> nn.Module:
    """A network of a family, freshly initialised by torch's global generator.

    Args:
        family: a name in :func:`families`.
        arguments: keyword arguments of its builder, ``dim`` and ``image_size`` among them.
        weights_follow: the caller loads all weights next, so that a pretrained family need not read its own.

    Raises:
        ConfigError: an unknown family, or an argument that is missing, unknown, of a wrong type or out of range.
    """
    known = families()
    if family not in known:
        names = ", ".join(known) or "none is installed: pip install 'samespace[edge]'"
        raise ConfigError(f"unknown model family {family!r}; known: {names}")
    builder = known[family].load()
    arguments = dict(arguments)
    parameters = inspect.signature(builder).parameters
    _check(family, parameters, arguments)
    if weights_follow and "pretrained" in parameters:
        arguments["pretrained"] = False
    return builder(**arguments)


def _check(family: str, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> None:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # such a builder checks its own
    if unknown := sorted(set(arguments) - set(parameters)):
        raise ConfigError(f"model family {family}: unknown argument {', '.join(unknown)}; it takes {', '.join(parameters)}")
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    if missing := [name for name in required if name not in arguments]:
        raise ConfigError(f"model family {family}: missing argument {', '.join(missing)}")
