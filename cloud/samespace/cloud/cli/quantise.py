"""``samespace quantise``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: samespace quantise runs/emoji --model phone -o runs/emoji-int8")
def quantise(
    run: Annotated[Path, typer.Argument(help="Run directory that 'samespace train' wrote.")],
    model: Annotated[str, typer.Option("--model", help="Edge model of the run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new run; made when it is not there.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 200,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    batch: Annotated[int | None, typer.Option(min=2, help="Images a step. Default: the run's.", show_default=False)] = None,
    weight_bits: Annotated[
        int, typer.Option(min=2, max=8, help="Bits of a weight; ONNX artifacts for CPUs without VNNI keep 7.")
    ] = 8,
    activation_bits: Annotated[int, typer.Option(min=2, max=8, help="Bits of an activation.")] = 8,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is in the folder, or discard it and start over.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print what int8 costs before and after as JSON.")] = False,
) -> None:
    """Fine-tune an edge model of a finished run for int8, against the float cloud gallery.

    For models that lose too much when they are quantised as they are. The new run exports as any other; its weights are float.
    Interrupted (Ctrl-C, kill, power), the same command goes on where it was.
    """
    from samespace.cloud.quantisation import Settings
    from samespace.cloud.quantisation import quantise as fine_tune

    settings = Settings(steps, learning_rate, batch, weight_bits, activation_bits)
    try:
        cost = fine_tune(run, model, output, settings, resume=resume)
    except KeyboardInterrupt as interrupt:
        typer.echo(f"{interrupt or 'stopped'}; run the same command again to go on", err=True)
        raise typer.Exit(130) from None
    if cost is None:  # not the first process under torchrun
        return
    if as_json:
        typer.echo(json.dumps({"run": str(output), "model": model, **cost}, indent=2, allow_nan=False))
    else:
        _print(model, cost, output)


def _print(model: str, cost: dict[str, Any], output: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from samespace.sdk.metrics import Estimate

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file or a pipe has no width that the table would have to fit into
    for split in cost["after"]:
        title = f"{model}: recall@1 in the float cloud gallery, unseen {split} classes: percent [95 % interval]"
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        for heading in ("fine-tuned", "float", "int8 (simulated)", "worst-1 % cosine", "n"):
            table.add_column(heading, justify="left" if heading == "fine-tuned" else "right", no_wrap=True)
        for when in ("before", "after"):
            cell = cost[when][split]
            figures = [Estimate(**cell[kind]["recall@1"]).text() for kind in ("float", "int8")]
            table.add_row(when, *figures, f"{cell['worst_cosine']:.4f}", str(cell["n"]))
        console.print(table)
    typer.echo(f"run: {output}")
    typer.echo(f"next: samespace export {output} --model {model} -o {model}.samespace")
