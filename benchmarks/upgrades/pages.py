"""The tables and plots of upgrades that documents show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapted import BOTH
from claims import Found
from flips import Update
from paired import Figure
from refresh import SHARES
from shown import markdown, saved, text

__all__ = ["plots", "tables"]


def tables(found: Found) -> dict[str, str]:
    """Name of a block -> Markdown; all in percent, with 95 % intervals."""
    return {
        "methods": _methods(found),
        "chains": "\n".join(_chain(found, method) for method in found.chains),
        "adapters": _adapters(found),
        "flips": "\n".join(_flips(title, found.flips[name]) for name, title in _UPDATES.items()),
        "refresh": _refresh(found),
    }


def plots(found: Found, folder: Path, prefix: str = "upgrades") -> list[str]:
    """Draw gain against tax, and the refresh; names of the files in ``folder``."""
    import matplotlib

    matplotlib.use("agg")
    return [_pareto(found, folder / f"{prefix}-pareto.png"), _curves(found, folder / f"{prefix}-refresh.png")]


_UPDATES = {
    "same": "the same network, classification",
    "wide": "a network twice as wide, classification",
    "retrieval": "retrieval in the old gallery",
    "ensembles": "ensembles, classification",
    "growing": "twice as many classes, classification of the old ones",
}


def _methods(found: Found) -> str:
    rows = []
    for name, step in sorted(found.steps.items(), key=lambda pair: -pair[1].gain("map").value):
        figures = (step.across["map"] - step.old["map"], step.across["recall@1"] - step.old["recall@1"])
        rows.append([name, *map(text, figures), text(step.gain("map")), text(step.tax("map")), text(step.tax("recall@1"))])
    return markdown(["method", "M(n,o) - M(o,o), mAP", "R@1", "gain, mAP", "tax, mAP", "tax, R@1"], rows)


def _chain(found: Found, method: str) -> str:
    chain = found.chains[method]
    matrix = chain.matrix["map"]
    rows = [[f"queries {q}", *(f"{100 * cell.value:.1f}" for cell in row)] for q, row in enumerate(matrix, 1)]
    head = [f"{method}, mAP", *(f"gallery {g}" for g in range(1, len(matrix) + 1))]
    summary = f"AC {_share(chain.compatibility['map'])}, AA {text(chain.accuracy['map'])} %"
    return f"{markdown(head, rows)}\n{summary}\n"


def _adapters(found: Found) -> str:
    old, new = found.adapted.old, found.adapted.new
    rows = []
    for name in (*(name for name in new if name != BOTH), BOTH):
        gains = [new[name][metric] - old[metric] for metric in ("map", "recall@1")]
        rows.append([name, *map(text, gains), ", ".join(found.adapted.outcomes.get(name, ("-",)))])
    return markdown(["adapter", "M(n,o) - M(o,o), mAP", "R@1", "the gate says"], rows)


def _flips(title: str, update: Update) -> str:
    rows = [["without", text(update.plain.error), text(update.plain.flips), ""]]
    for name, treated in update.treated.items():
        mark = f"**{name}**" if name == update.name else name
        rows.append([mark, text(treated.error), text(treated.flips), text(update.cut_of(name))])
    return markdown([title, "error", "negative flips", "cut"], rows)


def _refresh(found: Found) -> str:
    refreshed = found.refreshed
    rows = []
    for gallery, order in refreshed.curves:
        dip = text(refreshed.dip(gallery, order))
        rows.append([gallery, order, text(refreshed.area(gallery, order)), dip])
    return markdown(["gallery", "order", "area under the curve, mAP", "lowest point above M(o,o)"], rows)


def _share(figure: Figure) -> str:
    return text(figure, 1, 2)


def _pareto(found: Found, path: Path) -> str:
    """What each method gains without a backfill, against what it costs the new model."""
    canvas, axes = _canvas((6.4, 4.8))
    for name, step in found.steps.items():
        gain, tax = (figure.estimate for figure in (step.gain("map"), step.tax("map")))
        x, y = 100 * tax.value, 100 * gain.value
        spans = [[[x - 100 * tax.low], [100 * tax.high - x]], [[y - 100 * gain.low], [100 * gain.high - y]]]
        axes.errorbar(x, y, xerr=spans[0], yerr=spans[1], fmt="o", capsize=2)
        axes.annotate(name, (x, y), xytext=(6, 6), textcoords="offset points")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("tax: M(n*,n*) - M(n,n), points of mAP")
    axes.set_ylabel("gain: share of the quality gap there is\nwithout a backfill, %")
    return saved(canvas, path)


def _curves(found: Found, path: Path) -> str:
    """mAP of new queries while the gallery is embedded anew."""
    canvas, axes = _canvas((6.4, 4.8))
    colours: Mapping[str, Any] = {"adapted": "C0", "bct": "C1", "combined": "C2"}
    for (gallery, order), points in found.refreshed.curves.items():
        if gallery not in colours or order == "oldest":
            continue
        style = "-" if order == "uncertainty" else "--"
        heights = [100 * point.value for point in points]
        axes.plot([100 * share for share in SHARES], heights, style, color=colours[gallery], label=f"{gallery}, {order}")
    axes.axhline(100 * found.refreshed.old.value, color="black", linewidth=0.8, label="old queries, old gallery")
    axes.set_xlabel("gallery embedded anew, %")
    axes.set_ylabel("mAP of new queries, %")
    axes.legend(frameon=False)
    return saved(canvas, path)


def _canvas(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=size, layout="constrained")
    return canvas, canvas.subplots()
