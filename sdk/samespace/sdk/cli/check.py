"""``samespace check``: prove that a bundle's artifacts give the embeddings that the gallery expects."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samespace.sdk.errors import ConfigError

if TYPE_CHECKING:
    from samespace.sdk.check import CompatibilityReport, Settings

__all__ = ["app"]

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command(
    epilog="Example: samespace check phone.samespace --runtime tflite --json phone.json. "
    "Exit codes: 0 pass, 1 fail or error, 3 inconclusive, 2 wrong usage."
)
def check(
    bundle: Annotated[Path | None, typer.Argument(help="Folder or zip of the bundle.", show_default=False)] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="Runtime to check in; may be repeated. Default: all that the device has.")
    ] = None,
    artifact: Annotated[
        list[str] | None, typer.Option(help="Artifact to check (onnx-fp32) or format (onnx); may be repeated. Default: all.")
    ] = None,
    gallery: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="Gallery: .npz with embeddings (labels, model_id), or a service's URL. Default: the bundle's.",
        ),
    ] = None,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Judge what an app computed for the probe images: .json, .csv or .npz. Runs nothing."
        ),
    ] = None,
    tensors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --embeddings: what the app fed to the model: .bin, .npz or .npy."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write reports and verdicts as JSON; - for stdout.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write them as one page with the worst cases as pictures.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge reports that --json saved again, without measuring.")
    ] = None,
    worst_cosine: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Lowest worst-1 % cosine. Default: by precision.", show_default=False),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="Lowest % of the neighbours kept. Default: by precision.", show_default=False),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="How many points R@1 may fall. Default: by precision.", show_default=False),
    ] = None,
    hard_overlap: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="--overlap of the hardest queries. Default: twice the loss.", show_default=False),
    ] = None,
    hard_margin: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="--margin of the hardest queries. Default: four times.", show_default=False),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Device to check on, or several (a53,a76,browser) in one matrix; with --embeddings what to call the phone.",
            show_default="host, or app",
        ),
    ] = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="One line a check, with the difference to this machine, for one device, too.")
    ] = False,
    disable: Annotated[
        bool,
        typer.Option(
            "--disable",
            help="Write the outcome into the bundle, disable there what fails, device by device, and sign it again.",
        ),
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="With --disable: private key to sign with.", show_default="this machine's default key")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="That one artifact may take on one of several devices.")
    ] = 900.0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure everything, also what an interrupted run on several devices had finished.")
    ] = False,
    allow_unsigned: Annotated[
        bool,
        typer.Option(
            "--allow-unsigned", help="Open a bundle that nobody trusted signed; its artifacts run in a limited process."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of the runtime; 0: it chooses.")] = 0,
) -> None:
    """Prove that a bundle's artifacts give the embeddings that the gallery expects.

    Three layers: preprocessing against golden tensors, embeddings against the model's fp32 reference, and retrieval in a
    gallery that the cloud model embedded.
    """
    if (bundle is None) == (report is None):
        raise typer.BadParameter("give a bundle to measure, or --report FILE to judge again", param_hint="BUNDLE")
    if embeddings is None and tensors is not None:
        raise typer.BadParameter("needs --embeddings FILE: what the app made of these tensors", param_hint="--tensors")
    if embeddings is not None and (bundle is None or runtime):
        raise typer.BadParameter("judges an app: give its BUNDLE, and no --runtime", param_hint="--embeddings")
    from samespace.sdk.check import Settings
    from samespace.sdk.cli.check_files import finish, saved

    settings = Settings(seed=seed, threads=threads)
    limits = {
        "worst_cosine": worst_cosine,
        "overlap": overlap and overlap / 100,
        "recall_margin": margin and margin / 100,
        "hard_overlap": hard_overlap and hard_overlap / 100,
        "hard_margin": hard_margin and hard_margin / 100,
    }
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    devices = [] if embeddings is not None else [name.strip() for name in (device or "host").split(",")]
    several = len(devices) > 1 or matrix or disable
    if several and (report is not None or embeddings is not None):
        raise typer.BadParameter("checks on devices: leave --report and --embeddings out", param_hint="--matrix, --disable")
    if key is not None and not disable:
        raise typer.BadParameter("signs what --disable writes; without it nothing is signed", param_hint="--key")
    if several:
        assert bundle is not None
        from samespace.sdk.check.device_process import Task
        from samespace.sdk.cli.check_matrix import check_matrix

        task = Task(bundle, gallery, settings, allow_unsigned, timeout)
        check_matrix(task, devices, artifact or [], runtime or [], limits, json_file, html_file, fresh, disable, key)
    if report is not None:
        reports = saved(report)
    elif embeddings is not None:
        assert bundle is not None
        reports = _from_app(bundle, artifact or [], embeddings, tensors, gallery, device, allow_unsigned, settings)
    else:
        assert bundle is not None
        reports = _measured(bundle, runtime or [], artifact or [], gallery, devices[0], allow_unsigned, settings)
    finish(reports, limits, json_file, html_file)


def _from_app(
    path: Path,
    artifacts: list[str],
    embeddings: Path,
    tensors: Path | None,
    gallery: str | None,
    name: str | None,
    allow_unsigned: bool,
    settings: Settings,
) -> list[CompatibilityReport]:
    from samespace.sdk.bundle import Bundle
    from samespace.sdk.check import AppDevice, measure
    from samespace.sdk.check.searched import read_gallery, searched

    opened = Bundle.open(path, allow_unsigned=allow_unsigned)
    if len(artifacts) != 1 and (artifacts or len(opened.artifacts) != 1):
        there = ", ".join(spec.name for spec in opened.artifacts) or "none"
        raise ConfigError(f"{path}: say with --artifact which one the app runs; there is: {there}")
    spec = opened.artifact(artifacts[0]).spec if artifacts else opened.artifacts[0]
    app = AppDevice.from_files(opened, embeddings, tensors, name or "app")
    with searched(gallery, read_gallery(gallery), opened, spec.path, None) as found:
        return [measure(opened, spec.path, device=app, gallery=found, settings=settings)]


def _measured(
    path: Path,
    runtimes: list[str],
    artifacts: list[str],
    gallery: str | None,
    device_name: str,
    allow_unsigned: bool,
    settings: Settings,
) -> list[CompatibilityReport]:
    from samespace.sdk.bundle import Bundle
    from samespace.sdk.check import measure
    from samespace.sdk.check.jobs import choose_jobs
    from samespace.sdk.check.searched import read_gallery, searched
    from samespace.sdk.cli.progress import progress
    from samespace.sdk.devices import open_device
    from samespace.sdk.probes import ProbeSet

    with closing(open_device(device_name)) as device:
        opened = Bundle.open(path, allow_unsigned=allow_unsigned)
        probes = ProbeSet.from_bundle(opened)
        jobs, unchecked = choose_jobs(opened, device, runtimes, artifacts)
        for name, why in unchecked:
            print(f"not checked: {name}, {why}", file=sys.stderr)
        sample = read_gallery(gallery)
        reports = []
        with progress("Checking", total=len(jobs)) as bar:
            for artifact, runtime in jobs:
                with searched(gallery, sample, opened, artifact, runtime) as found:
                    reports.append(
                        measure(opened, artifact, runtime, device=device, gallery=found, probes=probes, settings=settings)
                    )
                bar.advance(1, reports[-1].title)
        return reports
