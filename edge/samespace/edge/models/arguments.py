"""Checks of a builder's arguments: a wrong one is a :class:`ConfigError` that names it, its value and its range."""

from collections.abc import Sequence

from samespace.sdk.errors import ConfigError

__all__ = ["divisible", "in_range", "one_of"]


def in_range(name: str, value: int, low: int, high: int) -> None:
    """Refuse anything that is not an integer in ``[low, high]``.

    Raises:
        ConfigError: not an integer (``bool`` is none), or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"model argument {name} = {value!r}: must be an integer from {low} to {high}")


def divisible(name: str, value: int, by: int, why: str) -> None:
    """Refuse a value that ``by`` does not divide; ``why`` ends the message.

    Raises:
        ConfigError: ``value % by != 0``.
    """
    if value % by:
        raise ConfigError(f"model argument {name} = {value}: must be a multiple of {by}, {why}")


def one_of(name: str, value: object, known: Sequence[object]) -> None:
    """Refuse a value that is not among ``known``.

    Raises:
        ConfigError: it is not; the message lists those that are.
    """
    if value not in known:
        raise ConfigError(f"model argument {name} = {value!r}: must be one of {', '.join(map(repr, known))}")
