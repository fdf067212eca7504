"""Fingerprints as hypotheses: what the embeddings would be if a mistake, or two, were made."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.diagnosis.catalogue import cause_of
from samespace.sdk.check.diagnosis.faults import PIXEL_FAULTS, VALUE_FAULTS, stage_of

__all__ = ["PAIR_PROBES", "SINGLE_PROBES", "Hypothesis", "fingerprint_name", "pairs", "read_hypotheses", "singles", "unit_rows"]

#: Of so many first probes the fingerprints are kept: enough to tell mistakes apart, and small.
SINGLE_PROBES, PAIR_PROBES = 64, 32
#: Not in pairs: too near to another variant to be told from it beside a second mistake.
_ALONE = {"filter_box", "filter_lanczos@antialias", "range_01@bytes"}


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """Mistakes, by the names of their fingerprints, and what they give.

    Attributes:
        faults: one or two names, with their variants; none for "nothing is wrong".
        rows: ``(m, d)`` float32 unit-norm, of the first m probes.
    """

    faults: tuple[str, ...]
    rows: npt.NDArray[np.float32] = field(repr=False)

    @property
    def causes(self) -> tuple[str, ...]:
        """The mistakes without their variants."""
        return tuple(cause_of(fault) for fault in self.faults)


def singles() -> tuple[str, ...]:
    """Every mistake that has a fingerprint, in the order of the stages; of two that look alike the first is the likelier."""
    return (*itertools.chain.from_iterable(PIXEL_FAULTS.values()), *VALUE_FAULTS)


def pairs() -> tuple[tuple[str, str], ...]:
    """Mistakes of two different stages that may come together."""
    alone = [name for name in singles() if name not in _ALONE]
    return tuple((a, b) for a, b in itertools.combinations(alone, 2) if stage_of(a) != stage_of(b))


def fingerprint_name(*faults: str) -> str:
    """How the file of fingerprints calls these mistakes together."""
    return "+".join(faults)


def read_hypotheses(mistakes: Mapping[str, npt.NDArray[Any]]) -> tuple[Hypothesis, ...]:
    """The fingerprints of a bundle that are about directions; ``no_l2`` is about norms."""
    return tuple(
        Hypothesis(tuple(name.split("+")), unit_rows(rows))
        for name, rows in sorted(mistakes.items(), key=_order)
        if name != "no_l2"
    )


def unit_rows(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """``(n, d)`` rows divided by their norms; a zero row stays zero."""
    wide = rows.astype(np.float64)
    return (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)).astype(np.float32)


def _order(item: tuple[str, Any]) -> tuple[int, list[int], str]:
    """Singles first, and the likelier of what looks alike."""
    known = {name: place for place, name in enumerate(singles())}
    faults = item[0].split("+")
    return len(faults), [known.get(fault, len(known)) for fault in faults], item[0]
