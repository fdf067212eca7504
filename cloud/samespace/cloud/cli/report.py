"""``samespace report``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samespace.sdk.errors import ConfigError

if TYPE_CHECKING:
    from samespace.cloud.upgrades import UpgradeReport, Verdict

__all__ = ["app"]

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command(
    epilog="Example: samespace report runs/mugs runs/mugs-2 --html upgrade.html. "
    "Exit codes: 0 may go live, 1 must not, 3 not decided, 2 wrong usage."
)
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Finished runs, oldest first; an upgrade alone will do.", show_default=False)
    ] = None,
    saved: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Judge what --json saved again, without measuring.")
    ] = None,
    control: Annotated[
        Path | None, typer.Option(help="Run of the newest model without a compatibility term: tells gain and tax.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write report and verdict as JSON; - for stdout.")
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write them as one page.")] = None,
    metric: Annotated[str, typer.Option(help="What is compared: map or recall@1.")] = "map",
    margin: Annotated[float, typer.Option(min=0, max=100, help="Points that M(n,o) may fall below M(o,o).")] = 0.5,
    slice_drop: Annotated[float, typer.Option(min=0, max=100, help="Points that a slice may fall.")] = 5.0,
    slice_least: Annotated[int, typer.Option(min=2, help="Queries that a slice needs to decide anything.")] = 20,
    flips: Annotated[float, typer.Option(min=0, help="Budget of negative flips in %, times what each costs.")] = 5.0,
    cost: Annotated[
        list[str] | None, typer.Option(metavar="NAME=COST", help="What a flip of a class, or of one query, costs; repeatable.")
    ] = None,
    never: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Class, or key of a query, that must not flip; repeatable.")
    ] = None,
    far_ratio: Annotated[
        float | None, typer.Option(min=0, help="Judge FAR at the old threshold, too: so many times the old one at most.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
) -> None:
    """Judge an upgrade: what its queries find in the old gallery, for whom it is worse, and what it breaks.

    All generations search all galleries of the newest run's test pictures. The last step is judged.
    """
    if bool(runs) == (saved is not None):
        raise typer.BadParameter("give runs to measure, or --report FILE to judge again", param_hint="RUNS")
    from samespace.cloud.upgrades import Bars, judge, read_report, report_of
    from samespace.cloud.upgrades.page import page
    from samespace.sdk.cli.check_files import refuse_unwritable
    from samespace.sdk.files import atomic_write

    bars = Bars.of(
        metric=metric,
        margin=margin / 100,
        slice_drop=slice_drop / 100,
        slice_least=slice_least,
        flips=flips / 100,
        costs=_costs(cost or []),
        never=tuple(never or ()),
        far_ratio=far_ratio,
        seed=seed,
    )
    for file in (json_file, html_file):
        refuse_unwritable(file)
    if saved is not None:
        try:
            measured = read_report(saved.read_bytes(), str(saved))
        except OSError as error:
            raise ConfigError(
                f"{saved}: cannot be read ({error}); write one with samespace report RUN --json {saved}"
            ) from None
    else:
        measured = report_of(runs or [], control, "samespace " + shlex.join(["report", *sys.argv[2:]]))
    verdict = judge(measured, bars)
    content = {
        "report": measured.model_dump(mode="json"),
        "bars": bars.model_dump(),
        "verdict": verdict.model_dump(mode="json"),
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    if html_file is not None:
        atomic_write(html_file, page(measured, verdict))
    if json_file is not None and str(json_file) != "-":
        atomic_write(json_file, text)
    if str(json_file) == "-":
        typer.echo(text, nl=False)
    else:
        _print(measured, verdict)
    raise typer.Exit(verdict.exit_code)


def _costs(given: list[str]) -> dict[str, float]:
    costs = {}
    for item in given:
        name, equals, value = item.rpartition("=")
        try:
            costs[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not costs[name] >= 0:
            raise ConfigError(f"--cost {item!r}: say NAME=COST with a cost of at least 0, such as 'fly agaric=20'")
    return costs


def _print(report: UpgradeReport, verdict: Verdict) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=140, highlight=False)  # a file or a pipe has no width that the table would have to fit into
    n = len(report.outcomes.old.recall1)
    names = [one.name for one in report.generations]
    for metric, title in (("recall@1", "R@1"), ("map", "mAP")):
        table = Table(title=f"M(query, gallery), {title}: percent [95 % interval], n={n} in {report.gallery}",
                      title_justify="left", box=box.SIMPLE)  # fmt: skip
        for heading in ("query \\ gallery", *names):
            table.add_column(heading, no_wrap=True)
        for q, name in enumerate(names):
            table.add_row(name, *(report.cell(q, g).of(metric).text() for g in range(len(names))))  # type: ignore[arg-type]
        console.print(table)
        chain = f"{title}: AC {report.compatibility[metric]:.2f}, AA {100 * report.accuracy[metric]:.1f}"  # type: ignore[index]
        gain, tax = report.gain.get(metric), report.tax.get(metric)  # type: ignore[call-overload]
        chain += f", gain {100 * gain:.0f} %" if gain is not None else ""
        typer.echo(chain + (f", tax {100 * tax:.1f} points" if tax is not None else ""))
    if moved := report.thresholds:
        typer.echo(
            f"threshold {moved.threshold:.3f} (FAR {moved.far:g}): TAR {moved.tar_old.text()} -> {moved.tar_new.text()} %, "
            f"FAR {moved.far_old.text(digits=3)} -> {moved.far_new.text(digits=3)} %; advised {moved.advised:.3f}"
        )
    if groups := report.groups:
        typer.echo(
            f"groups: adjusted Rand index {groups.agreement:.3f}; new photos put wrongly {groups.rule_error_old.text()} -> "
            f"{groups.rule_error_new.text()} %"
        )
    typer.echo("")
    for finding in verdict.findings:
        typer.echo(f"{finding.outcome:12}  {finding.message}")
    words = {"pass": "may go live", "fail": "must not go live", "inconclusive": "is not decided"}
    typer.echo(f"\n{report.old.name} -> {report.new.name}: {words[verdict.outcome]}")
