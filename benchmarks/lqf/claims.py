"""The claims about linear quadratic fine-tuning, their bars, and whether they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from methods import LONG, SHORT
from paired import Figure, Resamples, mean_of
from protocol import Found
from records import Recorder

from samespace.sdk.evidence import EvidenceRecord

__all__ = ["accuracies", "claims"]

_WITHIN, _PLAIN, _CROSS_ENTROPY, _EXACT, _LOST, _FORWARD, _SECONDS = 1.5, 5.0, 1.0, 1.0, 1.0, 2.2, 120.0


def accuracies(hits: dict[Any, Any]) -> dict[Any, Figure]:
    """Figures that share their resamples."""
    first = np.asarray(next(iter(hits.values())))
    resamples = Resamples(len(first), first.shape[1], count=1000)
    return {key: resamples.figure(value) for key, value in hits.items()}


def claims(found: Found, common: dict[str, Any]) -> list[EvidenceRecord]:
    """All records."""
    record, near = Recorder(common), accuracies(dict(found.near))
    barred = [shots for shots in found.shots if shots > 5] or list(found.shots)
    return [
        _as_good(record, found, near, barred),
        *_better(record, found, near, barred),
        _quick(record, found, near, barred),
        _ablation(record, found),
        *_constrained(record, found),
        _cost(record, found),
    ]


def _gaps(found: Found, near: dict[Any, Figure], methods: tuple[str, ...], beside: str, shots: list[int]) -> dict[str, Figure]:
    return {
        f"{name}, {method}, {count} a class": near[name, method, count] - near[name, beside, count]
        for name in found.networks
        for method in methods
        for count in shots
    }


def _as_good(record: Recorder, found: Found, near: dict[Any, Figure], barred: list[int]) -> EvidenceRecord:
    gaps = _gaps(found, near, ("exact", "kfac"), "nonlinear", barred)
    short = {name: 100 * gap.value for name, gap in gaps.items() if 100 * gap.value < -_WITHIN}
    return record(
        "L1",
        "LQF, solved exactly and by K-FAC, is as good as non-linear fine-tuning near what the network knows",
        f"accuracy >= non-linear fine-tuning's - {_WITHIN} points in every cell, {', '.join(map(str, barred))} images a class",
        {"mean gap": mean_of(list(gaps.values())), **gaps},
        not short,
        f"below: {'; '.join(f'{name} {gap:+.1f}' for name, gap in short.items())}",
    )


def _better(record: Recorder, found: Found, near: dict[Any, Figure], barred: list[int]) -> list[EvidenceRecord]:
    plain = {
        name: mean_of([near[name, "kfac", count] - near[name, "sgd", count] for count in barred]) for name in found.networks
    }
    last = barred[-1]
    entropy = _gaps(found, near, ("exact", "kfac"), "ce", [last])
    return [
        record(
            "L2-mse",
            "K-FAC is what makes linearised squares learn: plain descent in as many steps is behind",
            f"K-FAC - plain descent >= {_PLAIN} points for each network, {SHORT} steps each, mean over images a class",
            {"mean": mean_of(list(plain.values())), **plain},
            all(100 * gap.value >= _PLAIN for gap in plain.values()),
            "; ".join(f"{name} {100 * gap.value:+.1f}" for name, gap in plain.items()),
        ),
        record(
            "L2-ce",
            "squares with K-FAC or in closed form beat linearised cross-entropy by plain descent",
            f">= {_CROSS_ENTROPY} point in every cell at {last} images a class; cross-entropy has {LONG} steps",
            {"mean": mean_of(list(entropy.values())), **entropy},
            all(100 * gap.value >= _CROSS_ENTROPY for gap in entropy.values()),
            "; ".join(f"{name} {100 * gap.value:+.1f}" for name, gap in entropy.items()),
        ),
    ]


def _quick(record: Recorder, found: Found, near: dict[Any, Figure], barred: list[int]) -> EvidenceRecord:
    gaps = _gaps(found, near, ("kfac", "kfac-cg"), "exact", barred)
    plain = _gaps(found, near, ("sgd-long",), "exact", barred)
    worst = min(gaps, key=lambda name: gaps[name].value)
    return record(
        "L3",
        "K-FAC comes to the exact solution's accuracy in a fifth of the steps that plain descent is given",
        f"K-FAC in {SHORT} steps >= exact - {_EXACT} point in every cell; plain descent has {LONG}",
        {"mean gap": mean_of(list(gaps.values())), "mean gap of plain descent": mean_of(list(plain.values())), **gaps},
        100 * gaps[worst].value >= -_EXACT,
        f"{worst}: {100 * gaps[worst].value:+.1f}",
    )


def _ablation(record: Recorder, found: Found) -> EvidenceRecord:
    figures = accuracies(dict(found.ablation))
    parts: dict[str, Figure] = {}
    for name in found.networks:
        whole = figures[name, "kfac", 0.2]
        parts[f"{name}: without leaky ReLU"] = figures[name, "kfac", 0.0] - whole
        parts[f"{name}: without squares"] = figures[name, "ce-kfac", 0.2] - whole
        parts[f"{name}: without K-FAC"] = figures[name, "sgd", 0.2] - whole
    helps = all(part.value < 0 for part in parts.values())
    return record(
        "ablation",
        f"each of the three parts of LQF helps, {found.ablated} images a class",
        "taking any one away costs accuracy on both networks",
        {"mean": mean_of(list(parts.values())), **parts},
        helps,
        "; ".join(f"{name} {100 * part.value:+.1f}" for name, part in parts.items() if part.value >= 0),
    )


def _constrained(record: Recorder, found: Found) -> list[EvidenceRecord]:
    rows = list(found.constrained["found"].values())
    figures = {}
    for key in ("others", "own"):
        names = rows[0]["hits"]
        hits = {name: np.array([row["hits"][name][key] for row in rows]) for name in names}
        figures[key] = accuracies(hits)
    lost = {name: figures["others"]["before"] - figures["others"][name] for name in figures["others"] if name != "before"}
    gained = {f"own, {name}": figures["own"][name] - figures["own"]["before"] for name in lost}
    held, free = lost["constrained"], lost["unconstrained"]
    holds = 100 * held.value <= _LOST and free.value > held.value
    drifts = {
        f"seed {seed}: {name}": row[name] for seed, row in enumerate(rows) for name in ("bound", "first order", "weights")
    }
    return [
        record(
            "constrained",
            "an edge model that is adapted under the constraint goes on searching the unchanged cloud gallery",
            f"R@1 of other classes' queries falls by <= {_LOST} point, and by more without the constraint",
            {"lost, constrained": held, **{f"lost, {k}": v for k, v in lost.items() if k != "constrained"}, **gained},
            holds,
            f"lost {100 * held.value:.1f} with the constraint, {100 * free.value:.1f} without",
        ),
        record(
            "bound",
            "no anchor drifts farther than the bound says",
            "largest first-order drift <= bound in every run",
            drifts,
            all(row["first order"] <= row["bound"] for row in rows),
            "an anchor drifted farther",
            scale=1,
        ),
    ]


def _cost(record: Recorder, found: Found) -> EvidenceRecord:
    rows = list(found.constrained["found"].values())
    forward, seconds = found.forwards["last stage"], max(row["seconds"] for row in rows)
    images = min(row["images"] for row in rows)
    return record(
        "cost",
        "a linearised model and an adaptation are cheap",
        f"forward <= {_FORWARD}x the plain one's, the last stage changing; {images} images in <= {_SECONDS:.0f} s on 2 cores",
        {
            "forward, last stage": round(forward, 2),
            "forward, all layers": round(found.forwards["all layers"], 2),
            "seconds to adapt": round(seconds, 1),
            "images": images,
        },
        forward <= _FORWARD and seconds <= _SECONDS,
        f"forward {forward:.2f}x, {seconds:.0f} s",
    )
