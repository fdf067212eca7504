"""The tables of linear quadratic fine-tuning that documents show."""

from __future__ import annotations

import numpy as np
from claims import accuracies
from learning import FAR, MAIN
from protocol import Found
from shown import markdown, text

__all__ = ["tables"]


def tables(found: Found) -> dict[str, str]:
    """Name of a block -> Markdown; accuracies in percent with 95 % intervals over images and seeds."""
    return {
        "near": _table(found, accuracies(dict(found.near)), MAIN, found.shots),
        "far": _table(found, accuracies(dict(found.far)), FAR, found.far_shots),
        "constrained": _constrained(found),
    }


def _table(found: Found, figures: dict, methods: tuple[str, ...], shots: tuple[int, ...]) -> str:
    rows = [
        [name, method, *(text(figures[name, method, count]) for count in shots)]
        for name in found.networks
        for method in methods
    ]
    return markdown(("network", "method", *(f"{count} a class" for count in shots)), rows)


def _constrained(found: Found) -> str:
    rows = list(found.constrained["found"].values())
    figures = {
        key: accuracies({name: np.array([row["hits"][name][key] for row in rows]) for name in rows[0]["hits"]})
        for key in ("own", "others")
    }
    lines = [[name, *(text(figures[key][name]) for key in ("own", "others"))] for name in rows[0]["hits"]]
    return markdown(("edge model", "own classes R@1", "all others R@1"), lines)
