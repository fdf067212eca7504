"""The tables and plots that ``docs/heterogeneous.md`` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from cells import Cells
from paired import mean_of
from protocol import CONTROL, DEFAULT, LOSSES, OTHERS, PAIR, WITHOUT_OWN
from shown import markdown, saved, text

__all__ = ["plots", "tables"]


def tables(cells: Cells, macs: Mapping[str, int], cloud_macs: int, winners: Mapping[str, int]) -> dict[str, str]:
    """Name of a block -> Markdown; blocks for which nothing is there are left out. All figures are R@1 in percent."""
    found = {
        "architectures": _architectures(cells, macs, cloud_macs),
        "losses": _losses(cells),
        "other_losses": _most(cells, lambda few: _on_pair(few, (*LOSSES, *OTHERS))),
        "without_own": _most(cells, lambda few: _on_pair(few, (*LOSSES, *WITHOUT_OWN))),
        "without_own_short": _most(cells, lambda few: _on_pair(few, (*LOSSES, *WITHOUT_OWN), each=False)),
        "peers": _most(cells, _peers),
        "search": _most(cells, lambda few: _search(few, winners, cloud_macs)),
    }
    return {name: table for name, table in found.items() if table}


def plots(cells: Cells, folder: Path, prefix: str = "heterogeneous") -> list[str]:
    """Draw what can be drawn; names of the files in ``folder``."""
    import matplotlib

    matplotlib.use("agg")
    names = cells.architectures(DEFAULT)
    drawn = []
    if names and all(cells.has(name, CONTROL) for name in names):
        drawn += [_orders_plot(cells, names, folder / f"{prefix}-orders.png")]
    losses = [loss for loss in LOSSES if loss != CONTROL and all(cells.has(name, loss) for name in names)]
    if names and losses:
        drawn += [_losses_plot(cells, names, losses, folder / f"{prefix}-losses.png")]
    return drawn


def _architectures(cells: Cells, macs: Mapping[str, int], cloud_macs: int) -> str:
    try:
        paragon = cells.best()
    except KeyError:
        return ""
    names = [name for name in cells.architectures() if cells.has(name, DEFAULT)]
    rows = []
    for name in sorted(names, key=lambda name: -cells.figure(name, DEFAULT, "cross").value):
        alone = cells.figure(name, CONTROL, "own")
        own, cross = (cells.figure(name, DEFAULT, side) for side in ("own", "cross"))
        cost = f"{macs[name] / 1e6:.2f} M ({cloud_macs / macs[name]:.0f} x)"
        control = cells.figure(name, CONTROL, "cross")
        figures = text(control), text(alone), text(own), text(cross), text(cross - alone), text(cross / paragon, 1, 2)
        rows.append([name, cost, *figures])
    head = ["network", "MACs (fewer)", "control M(q,g)", "control M(q,q)", "M(q,q)", "M(q,g)", "M(q,g) - control M(q,q)", "H"]
    cloud = f"\nM(g,g) of the cloud model, {cloud_macs / 1e6:.1f} M MACs: {text(paragon)}.\n"
    return markdown(head, rows) + cloud if rows else ""


def _losses(cells: Cells) -> str:
    """The main losses: means, and each network in a column of its own."""
    losses = [loss for loss in LOSSES if cells.architectures(loss)]
    names = [name for name in cells.architectures(losses[0]) if all(cells.has(name, loss) for loss in losses)] if losses else []
    if not names:
        return ""
    rows = []
    for loss in losses:
        cross = {name: cells.figure(name, loss, "cross") for name in names}
        own = mean_of([cells.figure(name, loss, "own") for name in names])
        single = [f"{100 * cross[name].value:.1f}" for name in names]
        rows.append([loss, text(mean_of(list(cross.values()))), text(own), *single])
    return markdown(["loss", "mean M(q,g)", "mean M(q,q)", *names], rows)


def _most(cells: Cells, table: Callable[[Cells], str]) -> str:
    """A table of as many seeds as its cells have; it says how many where that is not all."""
    for seeds in range(len(cells.seeds), 0, -1):
        if text := table(cells.first(seeds)):
            return text if seeds == len(cells.seeds) else f"{text}\nSeeds: {', '.join(map(str, cells.seeds[:seeds]))}.\n"
    return ""


def _on_pair(cells: Cells, losses: Iterable[str], each: bool = True) -> str:
    """Losses, the best first, on the two networks; ``each`` network for itself, or the mean of both. Empty without the last."""
    wanted = list(losses)
    if not any(cells.has(name, wanted[-1]) for name in PAIR):
        return ""
    sides = ("cross", "own")
    rows = []
    for loss in wanted:
        names = [name for name in PAIR if cells.has(name, loss)]
        if each and names:
            cells_of = [(name, side) for name in PAIR for side in sides]
            rows.append([loss, *(text(cells.figure(n, loss, side)) if n in names else "-" for n, side in cells_of)])
        elif names == list(PAIR):
            rows.append([loss, *(text(mean_of([cells.figure(name, loss, side) for name in PAIR])) for side in sides)])
    rows.sort(key=lambda row: -_leading(row[1]))
    of = PAIR if each else ("mean",)
    return markdown(["loss", *(f"{name} {cell}" for name in of for cell in ("M(q,g)", "M(q,q)"))], rows)


def _peers(cells: Cells) -> str:
    rows = [[name, text(cells.other("peers", name))] for name in cells.others("peers")]
    rows.sort(key=lambda row: -_leading(row[1]))
    return markdown(["pytorch-metric-learning", "M(q,g)"], rows) if rows else ""


def _search(cells: Cells, winners: Mapping[str, int], cloud_macs: int) -> str:
    rows = []
    for name, macs in winners.items():
        try:
            alone, own, cross = (cells.other("search", name, side) for side in ("alone", "own", "cross"))
        except KeyError:
            return ""
        figures = text(alone), text(own), text(cross), text(cross - alone), text(cross / cells.best(), 1, 2)
        rows.append([name.upper(), f"{macs / 1e6:.2f} M ({cloud_macs / macs:.0f} x)", *figures])
    head = ["won by", "MACs (fewer)", "control M(q,q)", "M(q,q)", "M(q,g)", "M(q,g) - control M(q,q)", "H"]
    return markdown(head, rows) if rows else ""


def _leading(shown: str) -> float:
    return float(shown.split()[0]) if shown != "-" else -1.0


def _orders_plot(cells: Cells, names: Sequence[str], path: Path) -> str:
    """M(q,q) against M(q,g), each with its interval: were one order the other, the points would climb."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6.4, 4.8), layout="constrained")
    axes = canvas.subplots()
    for number, name in enumerate(sorted(names, key=lambda name: cells.figure(name, DEFAULT, "own").value)):
        own, cross = (cells.figure(name, DEFAULT, side).estimate for side in ("own", "cross"))
        x, y = 100 * own.value, 100 * cross.value
        spans = [[[x - 100 * own.low], [100 * own.high - x]], [[y - 100 * cross.low], [100 * cross.high - y]]]
        axes.errorbar(x, y, xerr=spans[0], yerr=spans[1], fmt="o", capsize=2)
        # Neighbours' names on different sides.
        axes.annotate(name, (x, y), xytext=(5, 5 if number % 2 else -12), textcoords="offset points")
    axes.set_xlabel("M(q,q), R@1 %: the network in a gallery of its own")
    axes.set_ylabel("M(q,g), R@1 %: in the cloud model's gallery")
    axes.set_title("Networks of equal cost, trained with head + regression")
    return saved(canvas, path)


def _losses_plot(cells: Cells, names: Sequence[str], losses: Sequence[str], path: Path) -> str:
    """M(q,g) of each architecture by loss; dashed: its control in a gallery of its own."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8.0, 4.8), layout="constrained")
    axes = canvas.subplots()
    width = 0.8 / len(losses)
    for number, loss in enumerate(losses):
        found = [cells.figure(name, loss, "cross").estimate for name in names]
        places = [index + (number - (len(losses) - 1) / 2) * width for index in range(len(names))]
        heights = [100 * one.value for one in found]
        spans = [[100 * (one.value - one.low) for one in found], [100 * (one.high - one.value) for one in found]]
        axes.bar(places, heights, width, yerr=spans, capsize=2, label=loss)
    for index, name in enumerate(names):
        if cells.has(name, CONTROL):
            alone = 100 * cells.figure(name, CONTROL, "own").value
            label = "_" if index else "trained alone, own gallery"
            axes.hlines(alone, index - 0.45, index + 0.45, colors="black", linestyles="dashed", label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("M(q,g), R@1 %")
    canvas.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.set_ylim(bottom=0)
    return saved(canvas, path)
