"""Evidence records made from figures, and what makers of records share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paired import Figure

from samespace.sdk.evidence import EvidenceRecord

__all__ = ["Recorder", "best_by_validation"]


def best_by_validation(choices: Mapping[str, Figure]) -> str:
    """The choice of the highest figure; give it figures of the validation classes.

    Raises:
        KeyError: there is none.
    """
    if not choices:
        raise KeyError("nothing to choose from")
    return max(choices, key=lambda name: choices[name].value)


class Recorder:
    """Makes records of common fields; figures are shares and become points of R@1."""

    def __init__(self, common: dict[str, Any]) -> None:
        self._common = common

    def __call__(
        self,
        id: str,
        claim: str,
        bar: str,
        figures: Mapping[str, Figure | float | str],
        holds: bool,
        reason: str,
        scale: float = 100,
    ) -> EvidenceRecord:
        """The first figure's interval is that of the record; every later one's stands beside it."""
        measured: dict[str, Any] = {}
        first = None
        for name, figure in figures.items():
            if not isinstance(figure, Figure):
                measured[name] = figure
                continue
            estimate = figure.estimate
            measured[name] = round(scale * estimate.value, 3)
            interval = round(scale * estimate.low, 3), round(scale * estimate.high, 3)
            if len(measured) == 1:
                first = interval
            else:
                measured[f"{name}, low"], measured[f"{name}, high"] = interval
        n = min((figure.n for figure in figures.values() if isinstance(figure, Figure)), default=0)
        return EvidenceRecord(
            id=id,
            claim=claim,
            bar=bar,
            measured=measured,
            ci95=first,
            n=n,
            holds=holds,
            reason="" if holds else reason,
            **self._common,
        )

    def missing(self, id: str, needed: str) -> EvidenceRecord:
        reason = f"not measured: run.py --only {needed}"
        return EvidenceRecord(
            id=id, claim="not measured", bar="", measured={}, ci95=None, n=0, holds=False, reason=reason, **self._common
        )
