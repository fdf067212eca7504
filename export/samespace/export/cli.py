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


@app.command(epilog="Example: samespace export runs/icons -o phone.samespace --target android")
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
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="What suits android, ios, web or linux-arm; comma-separated. Default: onnx and tflite fp32, coreml fp16.",
            show_default=False,
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(help="onnx, ort, tflite, coreml, executorch; comma-separated.", show_default=False),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option(
            help="fp32, fp16, int8, int8-dynamic, palette6, palette4; comma-separated. Each with each format that has it.",
            show_default=False,
        ),
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option("--artifact", help="Exactly one more: format, or format-precision; repeat.", show_default=False),
    ] = None,
    min_ios: Annotated[int, typer.Option(min=15, help="Oldest iOS for Core ML artifacts.")] = 17,
    min_litert: Annotated[str, typer.Option(help="Oldest TensorFlow Lite for TFLite artifacts.")] = "2.14",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of typical pictures for int8.", show_default="the run's calibration pictures"),
    ] = None,
    float_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Layers kept in float may give back so much of what int8 saves."),
    ] = 0.25,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure and print what int8 costs in each layer.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Write artifacts that miss their gate; evidence.json says that they failed.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="Private key to sign with.", show_default="this machine's default key")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Write unsigned bundles, which open with --allow-unsigned only.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Converters at once; each needs about 1 GiB of memory.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write a run's models as bundles, verified against the torch models before anything is written.

    One model goes to the bundle OUTPUT (which may name it: -o phone.samespace); several go to the folder OUTPUT, each as
    NAME.samespace. int8 that misses its gate is tried again with its worst layers in float; what misses then is refused.
    """
    # The key comes first: nobody should wait for conversions to learn that there is none.
    signer = _signer(key, unsigned)

    from samespace.export.bundle import export_run
    from samespace.export.options import ExportOptions
    from samespace.export.quantisation.choose import Search
    from samespace.export.run import read_run
    from samespace.export.targets import choose_artifacts
    from samespace.sdk.cli.progress import progress

    artifacts = choose_artifacts(artifact or (), _words(formats), _words(precisions), _words(target))
    source = read_run(run)
    models = source.choose(tuple(model or ()) or _named_by(output, source))
    paths = _targets(source, models, output)
    with progress("Exporting", total=2 * len(models) * len(artifacts)) as bar:
        exported = export_run(
            source,
            models,
            paths,
            signer,
            artifacts=artifacts,
            options=ExportOptions(min_ios=min_ios, min_litert=min_litert),
            calibration=calibration,
            search=Search(float_share, sensitivity),
            force=force,
            workers=jobs,
            done=lambda what: bar.advance(1, what),
            say=lambda what: bar.advance(0, what),
        )
    print(_as_json(exported) if as_json else _as_table(exported, signer))


def _words(values: list[str] | None) -> list[str]:
    """``["a,b", "c"]`` to ``["a", "b", "c"]``."""
    return list(dict.fromkeys(word.strip() for value in values or () for word in value.split(",") if word.strip()))


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
    from samespace.export.quantisation.sensitivity import table

    lines = [
        f"{'model':<12} {'artifact':<18} {'bytes':>10}  {'worst-1 % cosine':>16}  {'limit':>8}  {'top-10 kept':>11}  "
        f"{'recall@1':>22}  runtime"
    ]
    notes = []
    for item in exported:
        for agreement in item.agreements:
            overlap = "-" if agreement.overlap is None else f"{100 * agreement.overlap:.1f} %"
            lines.append(
                f"{item.name:<12} {agreement.artifact:<18} {agreement.bytes:>10}  {agreement.worst_cosine:>16.7f}  "
                f"{agreement.limit:>8}  {overlap:>11}  {_recall(agreement.recall):>22}  {agreement.runtime}"
            )
            if agreement.failed:
                notes.append(f"FAILED, and written because of --force: {agreement.failed}")
        for name, about in item.quantisation.items():
            if about["float_layers"] or not about["met"]:
                notes.append(f"{item.name} {name}: {about['why']}: {', '.join(about['float_layers']) or 'none'}")
            if about["sensitivity"]:
                notes.append(f"\nWhat int8 costs in each layer of {item.name} {name}:")
                notes.append(table(about["sensitivity"], about["float_layers"]) + "\n")
    signed = f"signed by {signer.key_id}" if signer else "unsigned"
    return "\n".join([*lines, *notes, *(f"wrote {item.path} ({item.manifest.model_id}, {signed})" for item in exported)])


def _recall(recall: dict[str, float] | None) -> str:
    if recall is None:
        return "-"
    return f"{100 * recall['difference']:+z.1f} [{100 * recall['low']:z.1f}, {100 * recall['high']:z.1f}]"


def _as_json(exported: Sequence[Exported]) -> str:
    return json.dumps(
        [
            {
                "model": item.name,
                "path": str(item.path),
                "model_id": item.manifest.model_id,
                "space_id": item.manifest.space_id,
                "artifacts": [agreement.to_json() for agreement in item.agreements],
                "quantisation": item.quantisation,
            }
            for item in exported
        ],
        indent=2,
    )
