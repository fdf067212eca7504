"""The hard limits of a search."""

from __future__ import annotations

from samespace.cloud.search.config import Budget
from samespace.cloud.search.costs import CostTable, Measured
from samespace.cloud.search.parts import cost
from samespace.edge.search import Architecture, SearchSpace

__all__ = ["Limits"]


class Limits:
    """Which architectures keep the budget; remembers the smallest that it saw, for the message when none does.

    Args:
        budget: the limits.
        space: of the architectures.
        table: predicts latency and bytes; asked only where they are limited, and only of those that keep the rest.
    """

    def __init__(self, budget: Budget, space: SearchSpace, table: CostTable) -> None:
        self.budget, self.space, self.table = budget, space, table
        self.smallest: dict[str, float] = {}

    def fits(self, architecture: Architecture) -> bool:
        """Whether it keeps all limits, by count and by prediction."""
        macs, params = cost(architecture, self.space)
        fits = self._within("macs", macs) & self._within("params", params)
        if not fits or (self.budget.latency_ms is None and self.budget.file_bytes is None):
            return fits
        predicted = self.table.predict(architecture)
        return self._within("latency_ms", predicted.latency_ms) & self._within("file_bytes", predicted.file_bytes)

    def allows(self, measured: Measured) -> bool:
        """Whether what was measured keeps the limits on latency and bytes."""
        latency, size = self.budget.latency_ms, self.budget.file_bytes
        return (latency is None or measured.latency_ms <= latency) and (size is None or measured.file_bytes <= size)

    def explain(self) -> str:
        """What was asked for, and the least that was seen of each."""
        asked = {name: value for name, value in self.budget if value is not None}
        parts = [
            f"budget.{name} = {value}" + (f" (smallest found: {self.smallest[name]:.6g})" if name in self.smallest else "")
            for name, value in asked.items()
        ]
        return ", ".join(parts)

    def _within(self, name: str, value: float) -> bool:
        self.smallest[name] = min(value, self.smallest.get(name, value))
        limit = getattr(self.budget, name)
        return limit is None or value <= limit
