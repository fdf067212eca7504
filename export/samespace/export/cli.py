"""``samespace export``: a run's models as verified, signed bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samespace.export.bundle import Exported
    from samespace.export.run import Run, RunModel
    from samespace.sdk.signing import SigningKey

__all__ = ["app"]

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command(epilog="Example: samespace export runs/icons -o phone.samespace")
def export(
    run: Annotated[Path, typer.Argument(help="Run directory that 'samespace train' wrote.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="Bundle to write (NAME.samespace, or .zip); a folder for several.", show_default=False
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="Model of the run; repeat for several. Default: all but the controls.", show_default=False
        ),
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option(
            "--artifact", help="Format, or format-precision; repeat. Default: onnx, tflite and coreml.", show_default=False
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Private key to sign with.", show_default="this machine's default key")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Write unsigned bundles, which open with --allow-unsigned only.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Converters at once; each needs about 1 GiB of memory.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a run's models as bundles: ONNX, TFLite and Core ML, verified against the torch models before anything is written.

    One model goes to the bundle OUTPUT (which may name it: -o phone.samespace); several go to the folder OUTPUT, each as
    NAME.samespace.
    """
    # The key comes first: nobody should wait for conversions to learn that there is none.
    signer = _signer(key, unsigned)

    from samespace.export.bundle import export_run, parse_artifacts
    from samespace.export.run import read_run
    from samespace.sdk.cli.progress import progress

    artifacts = parse_artifacts(artifact or [])
    source = read_run(run)
    models = source.choose(tuple(model or ()) or _named_by(output, source))
    targets = _targets(source, models, output)
    with progress("Exporting", total=2 * len(models) * len(artifacts)) as bar:
        exported = export_run(
            source, models, targets, signer, artifacts=artifacts, workers=jobs, done=lambda what: bar.advance(1, what)
        )
    print(_as_json(exported) if as_json else _as_table(exported, signer))


def _signer(key: Path | None, unsigned: bool) -> SigningKey | None:
    from samespace.sdk.errors import ConfigError
    from samespace.sdk.signing import SigningKey, key_path

    if unsigned:
        if key is not None:
            raise ConfigError("--unsigned and --key exclude each other; leave one of them out")
        return None
    if key is None and not key_path().is_file():
        raise ConfigError(
            "no key to sign with: make one with 'samespace keys new default', name one with --key, or pass --unsigned"
        )
    return SigningKey.load(key)


def _named_by(output: Path, run: Run) -> tuple[str, ...]:
    """``-o phone.samespace`` means the model ``phone``, where the run has one of that name."""
    name = output.name.split(".")[0]
    return (name,) if output.suffix in (".samespace", ".zip") and name in run.models else ()


def _targets(run: Run, models: Sequence[RunModel], output: Path) -> list[Path]:
    from samespace.sdk.errors import ConfigError

    if len(models) == 1:
        return [output]
    if output.suffix in (".samespace", ".zip") or output.is_file():
        names = ", ".join(model.name for model in models)
        raise ConfigError(
            f"{output}: {run.path} has {len(models)} models to export ({names}); name one with --model, or give a folder"
        )
    return [output / f"{model.name}.samespace" for model in models]


def _as_table(exported: Sequence[Exported], signer: SigningKey | None) -> str:
    lines = [f"{'model':<12} {'artifact':<12} {'bytes':>10}  {'worst-1 % cosine':>16}  {'limit':>8}  runtime"]
    for item in exported:
        for agreement in item.agreements:
            lines.append(
                f"{item.name:<12} {agreement.artifact:<12} {agreement.bytes:>10}  {agreement.worst_cosine:>16.7f}  "
                f"{agreement.limit:>8}  {agreement.runtime}"
            )
    signed = f"signed by {signer.key_id}" if signer else "unsigned"
    return "\n".join([*lines, *(f"wrote {item.path} ({item.manifest.model_id}, {signed})" for item in exported)])


def _as_json(exported: Sequence[Exported]) -> str:
    return json.dumps(
        [
            {
                "model": item.name,
                "path": str(item.path),
                "model_id": item.manifest.model_id,
                "space_id": item.manifest.space_id,
                "artifacts": [agreement.to_json() for agreement in item.agreements],
            }
            for item in exported
        ],
        indent=2,
    )
