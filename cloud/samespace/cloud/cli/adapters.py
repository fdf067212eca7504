"""``samespace adapters``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samespace.sdk.errors import ConfigError

if TYPE_CHECKING:
    from samespace.cloud.upgrades import UpgradeReport, Verdict

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Map one model's embeddings to another's, when nobody can retrain.",
)


@app.command(
    epilog="Example: samespace adapters fit runs/mugs runs/mugs-alone -o adapters --method pair. "
    "Exit codes: 0 written, 1 refused or error, 3 not decided, 2 wrong usage."
)
def fit(
    old: Annotated[Path, typer.Argument(help="Finished run of the model that embedded the gallery.")],
    new: Annotated[Path, typer.Argument(help="Finished run of the new model; its data is what is embedded.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the adapter and its report.")],
    method: Annotated[str, typer.Option(help="procrustes, ridge, low-rank, network or pair (backward and forward).")] = "ridge",
    direction: Annotated[
        str, typer.Option(help="backward: new queries, for the gallery as it is; forward: the gallery, for new queries.")
    ] = "backward",
    option: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Setting of the method; repeatable.")
    ] = None,
    side: Annotated[Path | None, typer.Option(help="Run whose embeddings are side information (FCT), with network.")] = None,
    margin: Annotated[float, typer.Option(min=0, max=100, help="Points that M(n,o) may fall below M(o,o).")] = 0.5,
    flips: Annotated[float, typer.Option(min=0, help="Budget of negative flips in %.")] = 5.0,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Write what does not pass, with this reason in its report.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON on stdout.")] = False,
) -> None:
    """Fit an adapter between the cloud models of two runs, and judge it on test classes; what fails is not written.

    A rotation can be worse than no upgrade: new queries through the adapter must find in the old gallery what old ones find.
    """
    from samespace.cloud.adapters.fit import METHODS, material_of, measured
    from samespace.cloud.adapters.fit import fit as fit_adapters
    from samespace.cloud.upgrades import Bars, judge
    from samespace.sdk.adapter import write_adapter
    from samespace.sdk.files import atomic_write

    if method not in METHODS or direction not in ("backward", "forward"):
        raise typer.BadParameter(f"--method is one of {', '.join(METHODS)}; --direction backward or forward")
    if side is not None and method != "network":
        raise typer.BadParameter("only a network takes side information", param_hint="--side")
    settings = _settings(option or [])
    if output.is_file():
        raise ConfigError(f"{output}: is a file; name a folder")
    bars = Bars.of(margin=margin / 100, flips=flips / 100)
    material = material_of(old, new, side)
    adapters = fit_adapters(material, method, direction, settings)  # type: ignore[arg-type]
    report = measured(material, adapters, "samespace " + shlex.join(["adapters", *sys.argv[2:]]))
    verdict = judge(report, bars)
    content = {
        "report": report.model_dump(mode="json"),
        "bars": bars.model_dump(mode="json"),
        "verdict": verdict.model_dump(mode="json"),
        "adapters": {name: adapter.adapter_id for name, adapter in adapters.items()},
        "forced": force,
    }
    if as_json:
        typer.echo(json.dumps(content["verdict"], indent=2))
    else:
        _print(report, verdict)
    if verdict.outcome != "pass" and force is None:
        typer.echo("nothing is written; --force REASON writes it all the same", err=True)
        raise typer.Exit(verdict.exit_code)
    for name, adapter in adapters.items():
        write_adapter(output / f"{name}.safetensors", adapter)
        typer.echo(f"{output / f'{name}.safetensors'}: {adapter.adapter_id}", err=as_json)
    atomic_write(output / "report.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


@app.command(epilog="Example: samespace adapters apply adapters/backward.safetensors new.npz -o for-old-gallery.npz")
def apply(
    adapter: Annotated[Path, typer.Argument(help="File that 'samespace adapters fit' wrote.")],
    embeddings: Annotated[Path, typer.Argument(help=".npz with 'embeddings' (n, d), and perhaps 'side'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".npz to write; other arrays are copied.")],
) -> None:
    """Map embeddings of a file."""
    import io

    import numpy as np

    from samespace.sdk.adapter import read_adapter
    from samespace.sdk.files import atomic_write

    loaded = read_adapter(adapter)
    try:
        with np.load(embeddings, allow_pickle=False) as file:
            arrays = dict(file)
        rows = arrays["embeddings"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{embeddings}: no array 'embeddings' can be read from it ({error})") from None
    arrays["embeddings"] = loaded.apply(rows, arrays.pop("side", None))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    atomic_write(output, buffer.getvalue())
    typer.echo(f"{output}: {len(rows)} embeddings in the space of {loaded.record.target_model_id}")


@app.command(
    epilog="Example: samespace adapters fold runs/alone cloud adapters/backward.safetensors --space runs/mugs -o runs/folded"
)
def fold(
    run: Annotated[Path, typer.Argument(help="Finished run of the model.")],
    model: Annotated[str, typer.Argument(help="Its name in the run.")],
    adapter: Annotated[Path, typer.Argument(help="Adapter that takes its embeddings.")],
    space: Annotated[Path, typer.Option(help="Finished run of the model whose space the adapter leads into.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new run; must not exist.")],
) -> None:
    """Make one network of a model and its adapter: a run that 'samespace export' takes as any other."""
    from samespace.cloud.adapters.fold import fold as fold_adapter
    from samespace.sdk.adapter import read_adapter

    record = fold_adapter(run, model, read_adapter(adapter), space, output)
    typer.echo(f"{output}: {record.name}, {record.model_id}")
    typer.echo(f"next: samespace export {output} --model {model}-adapted -o {model}-adapted.samespace")


def _settings(given: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set {item!r}: say NAME=VALUE, such as penalty=0.01")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            raise ConfigError(f"--set {item!r}: {value!r} is no number, true or false") from None
    return settings


def _print(report: UpgradeReport, verdict: Verdict) -> None:
    cells = {"M(o,o)": (0, 0), "M(n,o)": (1, 0), "M(o,n)": (0, 1), "M(n,n)": (1, 1)}
    for name, pair in cells.items():
        cell = report.cell(*pair)
        typer.echo(f"{name}  R@1 {cell.recall1.text()}, mAP {cell.map}")
    for finding in verdict.findings:
        typer.echo(f"{finding.outcome:12}  {finding.message}")
