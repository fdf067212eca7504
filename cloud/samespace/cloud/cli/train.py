"""``samespace train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from samespace.cloud.training import TrainedRun

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: samespace train recipe.toml -o runs/emoji --size ci")
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the run; made when it is not there.")],
    size: Annotated[str | None, typer.Option(help="Size of data and work: ci, small or full. Default: SAMESPACE_SIZE.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is in the folder, or discard it and start over.")
    ] = True,
    upgrade_from: Annotated[
        Path | None, typer.Option(help="Finished run of the model that serves now: the cloud model joins its space.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")] = False,
) -> None:
    """Co-train a cloud model and edge models into one embedding space.

    With --upgrade-from the cloud model is trained so that its queries find what the old one embedded, and no gallery need be
    embedded again; 'samespace report' judges the upgrade.

    Interrupted (Ctrl-C, kill, power), the same command goes on where it was. Several processes:
    torchrun --nproc-per-node 2 --no-python samespace train recipe.toml -o runs/emoji
    """
    from samespace.cloud.recipe import load_recipe
    from samespace.cloud.training import train as train_recipe

    loaded = load_recipe(recipe, size, upgrade_from)
    try:
        run = train_recipe(loaded, output, resume=resume)
    except KeyboardInterrupt as interrupt:
        typer.echo(f"{interrupt or 'stopped'}; run the same command again to go on", err=True)
        raise typer.Exit(130) from None
    if run is None:  # not the first process under torchrun
        return
    if as_json:
        typer.echo(json.dumps(_summary(run), indent=2, allow_nan=False))
    else:
        _print(run)


def _summary(run: TrainedRun) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "space_id": run.space.space_id,
        "models": {name: record.model_id for name, record in run.records.items()},
        "matrix": [cell.as_json() for cell in run.matrix],
    }


def _print(run: TrainedRun) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width that the table would have to fit into
    splits = {cell.split for cell in run.matrix}
    for split in ("validation", "test"):
        if split not in splits:
            continue
        title = f"M(query, gallery) on unseen {split} classes: percent [95 % interval]"
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for heading in ("query", "gallery", "R@1", "R@5", "mAP", "n"):
            table.add_column(heading, justify="left" if heading in ("query", "gallery") else "right", no_wrap=True)
        for cell in run.matrix:
            if cell.split == split:
                query = f"{cell.query} + {cell.adapter}" if cell.adapter else cell.query
                figures = list(cell.metrics.values())
                table.add_row(query, cell.gallery, *(figure.text() for figure in figures), str(figures[0].n))
        console.print(table)
    typer.echo(f"run: {run.path}")
    typer.echo(f"next: samespace export {run.path} -o bundles")
