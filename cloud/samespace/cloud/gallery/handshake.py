"""Judging a device's answer to a challenge: pure functions over two sets of embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samespace.cloud.gallery.evidence import MIN_SEPARATION, own_separation

__all__ = ["DEFAULT_GATES", "HandshakePolicy", "Judgement", "judge_by_record", "judge_same_model"]

#: Gate for the cosine to the model's own embedding, where the bundle states none.
DEFAULT_GATES = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.95, "int8-dynamic": 0.95, "palette6": 0.95, "palette4": 0.9}
#: A separation may lie so many standard errors below the bar: few pictures say little.
_SEPARATION_DEVIATIONS = 2.0
#: A known mistake explains a mean cosine that is this near to its own.
_NEAR = 0.03


@dataclass(frozen=True)
class HandshakePolicy:
    """How a handshake is held, and what becomes of who does not pass it.

    Attributes:
        pictures: challenges that a device must embed.
        deviations: standard errors by which the mean cosine may lie below the record's: 4 refuses a good device once in
            30,000.
        slack: or, if that is more, this much of cosine: the challenges are not the pictures that the record was
            measured on.
        answer_seconds: a device has so long to embed them.
        token_seconds: so long it may search before it shakes hands again.
        unverified: a device whose embeddings do not fit is refused, or may search and is warned with every answer; never may it
            add or delete.
        drifting: a kind of client whose queries moved away is refused until it is looked at, or warned.
    """

    pictures: int = 32
    deviations: float = 4.0
    slack: float = 0.05
    answer_seconds: float = 300.0
    token_seconds: float = 3600.0
    unverified: Literal["refuse", "warn"] = "refuse"
    drifting: Literal["refuse", "warn"] = "warn"


@dataclass(frozen=True)
class Judgement:
    """Whether a device's embeddings fit, why not, what was measured, and the mistakes that explain it, by name."""

    accepted: bool
    reason: str
    measured: dict[str, float]
    causes: tuple[str, ...] = ()


def judge_same_model(
    answer: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], gates: Mapping[str, Mapping[str, float]], precision: str
) -> Judgement:
    """The device runs the gallery's own model: every embedding must be the gallery's, up to its precision.

    The bundle's gate bounds the angle to the float model; answer and expectation may each be that far off, on opposite
    sides, and ``1 - cos(2a)`` is ``4 (1 - cos(a))`` for small angles a.
    """
    cosines = np.einsum("ij,ij->i", answer.astype(np.float64), expected.astype(np.float64))
    gate = gates.get(precision, {}).get("worst_cosine", DEFAULT_GATES[precision])
    bar, worst = 1 - 4 * (1 - gate), float(cosines.min())
    measured = {"worst_cosine": worst, "mean_cosine": float(cosines.mean()), "bar": bar, "pictures": float(len(cosines))}
    reason = (
        f"the worst of {len(cosines)} cosines to the gallery's own embeddings is {worst:.5f}; "
        f"a {precision} artifact of this model needs {bar:.5f}"
    )
    return Judgement(worst >= bar, reason, measured)


def judge_by_record(
    answer: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], report: Mapping[str, Any], policy: HandshakePolicy
) -> Judgement:
    """The device runs another model: its embeddings must lie as near to the gallery's as the compatibility record says.

    Both must hold: each picture's own gallery embedding is nearer than other pictures' (separation), and the mean
    cosine is not below the record's. The second finds what the first forgives: swapped channels shift all embeddings a
    little.
    """
    cosines = np.einsum("ij,ij->i", answer.astype(np.float64), expected.astype(np.float64))
    separations = own_separation(answer, expected)
    mean, separation, n = float(cosines.mean()), float(separations.mean()), len(cosines)
    measured = {"mean_cosine": mean, "separation": separation, "pictures": float(n)}
    if separation + _SEPARATION_DEVIATIONS * float(separations.std()) / math.sqrt(n) < MIN_SEPARATION:
        reason = (
            f"the gallery's own embedding of a picture beats only {separation:.0%} of the others, "
            f"{MIN_SEPARATION:.0%} are needed (mean cosine {mean:.3f})"
        )
        return Judgement(False, reason + _cause(mean, n, report), measured)
    claimed = _numbers(report.get("cosine"))
    if not {"mean", "std"} <= claimed.keys():
        return Judgement(True, "separation alone: the record has no cosines", measured)
    floor = claimed["mean"] - max(policy.deviations * _error(claimed["std"], n, report), policy.slack)
    measured |= {"expected_cosine": claimed["mean"], "bar": floor}
    reason = (
        f"the mean cosine to the gallery's own embeddings of {n} pictures is {mean:.3f}; "
        f"the compatibility record says {claimed['mean']:.3f}, and {floor:.3f} would do"
    )
    return Judgement(mean >= floor, reason + ("" if mean >= floor else _cause(mean, n, report)), measured)


def _cause(mean: float, n: int, report: Mapping[str, Any]) -> str:
    """The known mistakes whose effect comes near, nearest first: one number seldom tells two of them apart."""
    mistakes = report.get("mistakes")
    effects = {name: _numbers(value) for name, value in mistakes.items()} if isinstance(mistakes, Mapping) else {}
    distances = {
        name: abs(mean - effect["mean"])
        for name, effect in effects.items()
        if "mean" in effect and abs(mean - effect["mean"]) <= max(_NEAR, 3 * _error(effect.get("std", 0.0), n, report))
    }
    if not distances:
        return "; no known mistake explains it"
    fitting = [f"{name!r} ({effects[name]['mean']:.3f})" for name in sorted(distances, key=distances.__getitem__)]
    return f"; it fits the known mistake {' or '.join(fitting)}"


def _error(deviation: float, n: int, report: Mapping[str, Any]) -> float:
    """Standard error of the difference of two mean cosines: over n pictures here, and over the record's, which is
    uncertain too.
    """
    return deviation * math.sqrt(1 / n + 1 / max(1.0, _numbers(report).get("n", n)))


def _numbers(value: object) -> dict[str, float]:
    """The finite numbers of a dictionary: a record may come from elsewhere."""
    if not isinstance(value, Mapping):
        return {}
    return {name: float(number) for name, number in value.items() if isinstance(number, int | float) and math.isfinite(number)}
