"""The Pareto front: candidates of which none is both cheaper and better; as JSON and as a picture."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from samespace.cloud.search.memo import Candidate
from samespace.sdk.errors import MissingExtraError
from samespace.sdk.files import atomic_file, atomic_write

__all__ = ["check_plotting", "front", "write_pareto"]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points ``(cost, value)`` that no other one beats, cheapest first.

    One beats another when it costs no more and is worth no less, and one of the two strictly; of equal points all stay.
    """
    chosen: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index)):
        if not chosen or points[index][1] > points[chosen[-1]][1] or points[index] == points[chosen[-1]]:
            chosen.append(index)
    return chosen


def check_plotting() -> None:
    """See that the picture can be drawn, before hours of work.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("demo", "the plot of 'samespace nas'")


def write_pareto(folder: Path, candidates: Sequence[Candidate], winners: Mapping[str, str], partner: float) -> list[Candidate]:
    """Write ``pareto.json`` and ``pareto.png``.

    Args:
        folder: where to.
        candidates: those that did not fail.
        winners: name of a finalist -> key of its candidate.
        partner: M(g,g) on validation classes.

    Returns:
        The front, cheapest first.
    """
    chosen = [candidates[index] for index in front([(one.macs, one.m_qg) for one in candidates])]
    on_front = {one.key for one in chosen}
    names = {key: [name for name, other in winners.items() if other == key] for key in winners.values()}
    rows = [
        {
            "key": one.key,
            "macs": one.macs,
            "m_qg": one.m_qg,
            "m_qq": one.m_qq,
            "on_front": one.key in on_front,
            "finalist": names.get(one.key, []),
        }
        for one in sorted(candidates, key=lambda one: (one.macs, one.key))
    ]
    content = {"split": "validation", "metric": "recall@1", "m_gg": partner, "candidates": rows}
    atomic_write(folder / "pareto.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    _draw(folder / "pareto.png", candidates, chosen, names, partner)
    return chosen


def _draw(
    path: Path, candidates: Sequence[Candidate], chosen: Sequence[Candidate], names: Mapping[str, list[str]], partner: float
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    axis.scatter(
        [one.macs / 1e6 for one in candidates], [100 * one.m_qg for one in candidates], s=14, c="0.7", label="candidates"
    )
    axis.step(
        [one.macs / 1e6 for one in chosen], [100 * one.m_qg for one in chosen], "o-", where="post", ms=4, c="C0", label="front"
    )
    for one in candidates:
        if one.key in names:
            axis.plot(one.macs / 1e6, 100 * one.m_qg, "*", ms=13, c="C3")
            axis.annotate(", ".join(names[one.key]), (one.macs / 1e6, 100 * one.m_qg), (6, 6), textcoords="offset points")
    axis.axhline(100 * partner, ls=":", c="0.4", label="M(g,g) of the cloud model")
    axis.set_xlabel("million multiply-accumulates")
    axis.set_ylabel("M(q,g), R@1 on validation classes, %")
    axis.legend(loc="lower right")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
