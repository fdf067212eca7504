"""``samespace rollout``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from samespace.sdk.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command(epilog="Example: samespace rollout fleet.toml --budget 200000")
def rollout(
    fleet: Annotated[Path, typer.Argument(help="TOML file: traffic by device version, gallery, measured ways.")],
    budget: Annotated[int | None, typer.Option(min=0, help="Items that may be embedded anew. Default: the file's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON on stdout.")] = False,
) -> None:
    """Propose gallery model, adapters and backfill for a fleet of old and new devices, with nobody worse off."""
    from samespace.cloud.toml import read_toml
    from samespace.cloud.upgrades.planner import plan, read_fleet

    content = read_toml(fleet)
    reports = content.pop("reports", [])
    content["ways"] = [_way(one, fleet) for one in content.get("ways", [])] + [
        way for name in reports for way in _of_report(fleet.absolute().parent / name, str(content.get("metric", "map")))
    ]
    content.pop("metric", None)
    if budget is not None:
        content["budget"] = budget
    proposed = plan(read_fleet(content, str(fleet)))
    if as_json:
        typer.echo(proposed.model_dump_json(indent=2))
        return
    what = f"serve {proposed.gallery}"
    if proposed.items:
        what += f", embed {proposed.items} items anew ({100 * proposed.share:.0f} %"
        what += f", {proposed.order} first)" if proposed.order else ")"
    else:
        what += ", embed nothing"
    typer.echo(what)
    typer.echo(f"expected M over the fleet: {100 * proposed.before:.1f} -> {100 * proposed.after:.1f} %")
    for step in proposed.steps:
        way = f"through {step.adapter}" if step.adapter else "as it is"
        share = f"{100 * step.traffic:5.1f} % of the queries"
        typer.echo(f"  {step.device}: {share}, {way}: {100 * step.before:.1f} -> {100 * step.after:.1f} %")
    for gallery, device in proposed.refused.items():
        typer.echo(f"refused: {gallery} would leave {device} worse off within this budget")


def _way(one: Any, file: Path) -> Any:
    """``value = 0.4`` is short for a curve of one point: nothing embedded anew."""
    if not isinstance(one, dict):
        raise ConfigError(f"{file}: ways: must be tables, [[ways]] with query, gallery and value or curve")
    if "value" in one:
        if "curve" in one:
            raise ConfigError(f"{file}: ways: say value or curve, not both")
        one = {**{key: value for key, value in one.items() if key != "value"}, "curve": [[0.0, one["value"]]]}
    return one


def _of_report(file: Path, metric: str) -> list[dict[str, Any]]:
    """What ``samespace report --json`` measured: the oldest gallery as it is, newer ones when all of it is embedded."""
    from samespace.cloud.upgrades import read_report

    if not file.is_file():
        raise ConfigError(f"{file}: no such report; write one with: samespace report RUN --json FILE")
    report = read_report(file.read_bytes(), str(file))
    if metric not in ("recall@1", "map"):
        raise ConfigError(f"metric = {metric!r}: must be recall@1 or map")
    names = [one.name for one in report.generations]
    return [
        {
            "query": names[cell.query],
            "gallery": names[cell.gallery],
            "curve": [[0.0 if cell.gallery == 0 else 1.0, cell.of(metric).value]],  # type: ignore[arg-type]
        }
        for cell in report.matrix
    ]
