"""``samespace nas``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: samespace nas search.toml -o searches/phone --size ci")
def nas(
    search: Annotated[Path, typer.Argument(help="Search, a TOML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the search; made when it is not there.")],
    size: Annotated[str | None, typer.Option(help="Size of the work: ci, small or full. Default: SAMESPACE_SIZE.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is in the folder, or discard it and start over.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Search the small network that fits best into a finished run's space, within hard budgets, and train it.

    Interrupted (Ctrl-C, kill, power), the same command goes on where it was.
    """
    from samespace.cloud.search import load_search
    from samespace.cloud.search import search as run_search

    loaded = load_search(search, size)
    try:
        report = run_search(loaded, output, resume=resume)
    except KeyboardInterrupt as interrupt:
        typer.echo(f"{interrupt or 'stopped'}; run the same command again to go on", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps(report, indent=2, allow_nan=False))
    else:
        _print(report, output)


def _print(report: dict[str, Any], output: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file or a pipe has no width that the table would have to fit into
    partner, retrained = report["partner"], report["retrained"]
    title = (
        f"Winners: R@1 in percent; M(g,g) of the cloud model {_percent(partner['validation']['m_gg'])} on validation classes "
        f"({report['validation']['queries']} queries), {partner['macs'] / 1e6:.1f} million multiply-accumulates"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for heading in ("model", "won", "M MACs", "fewer", "M params", "ms", "kB", "shared M(q,q)", "M(q,g)"):
        table.add_column(heading, justify="left" if heading in ("model", "won") else "right", no_wrap=True)
    if retrained:
        for heading in ("trained M(q,q)", "M(q,g)", "control", "retention"):
            table.add_column(heading, justify="right", no_wrap=True)
    for name, one in report["winners"].items():
        row = [
            name,
            " ".join(one["rewards"]),
            f"{one['macs'] / 1e6:.2f}",
            f"{one['times_fewer_macs']:.1f}x",
            f"{one['params'] / 1e6:.3f}",
            f"{one['measured']['latency_ms']:.3f}",
            f"{one['measured']['file_bytes'] / 1e3:.0f}",
            _percent(one["validation"]["m_qq"]),
            _percent(one["validation"]["m_qg"]),
        ]
        if retrained:
            mean = retrained[name]["test"]["mean"]
            row += [_percent(mean.get(key)) for key in ("m_qq", "m_qg", "m_control", "retention")]
        table.add_row(*row)
    console.print(table)
    if retrained:
        seeds = next(iter(retrained.values()))["test"]["seeds"]
        typer.echo(f"trained: on unseen test classes, mean of {len(seeds)} seeds; shared: supernet weights, validation classes")
    found, error = report["candidates"], report["costs"]["prediction_error"]
    typer.echo(
        f"{found['evaluated']} candidates ({found['failed']} failed), {found['per_minute']:.0f} a minute on {found['workers']} "
        f"workers; predicted latency off by {100 * error['latency_ms']['largest']:+.0f} % and size by "
        f"{100 * error['file_bytes']['largest']:+.0f} % at most"
    )
    typer.echo(f"search: {output} (report.json, pareto.png, retrain.toml)")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
