"""``samespace check``: prove that a bundle's artifacts give the embeddings that the gallery expects."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samespace.sdk.errors import ConfigError

if TYPE_CHECKING:
    from samespace.sdk.bundle import Bundle
    from samespace.sdk.check import CompatibilityReport, GallerySample, ServiceGallery, Settings, Verdict
    from samespace.sdk.devices import Device

__all__ = ["app"]

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})

#: Of the file that --json writes and --report reads.
_FILE_VERSION = 1


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
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write reports and verdicts as JSON; - for stdout.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge reports that --json saved again, without measuring.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0, max=100, help="How many points R@1 may fall. Default: by precision.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="Device to check on.")] = "host",
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
    from samespace.sdk.check import Settings

    if report is not None:
        reports = _saved(report)
    else:
        assert bundle is not None
        reports = _measured(
            bundle, runtime or [], artifact or [], gallery, device, allow_unsigned, Settings(seed=seed, threads=threads)
        )
    _finish(reports, margin, json_file)


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
    from samespace.sdk.cli.progress import progress
    from samespace.sdk.devices import open_device
    from samespace.sdk.probes import ProbeSet

    device = open_device(device_name)
    opened = Bundle.open(path, allow_unsigned=allow_unsigned)
    probes = ProbeSet.from_bundle(opened)
    jobs = _jobs(opened, device, runtimes, artifacts)
    sample = _read_gallery(gallery)
    reports = []
    with progress("Checking", total=len(jobs)) as bar:
        for artifact_path, runtime in jobs:
            with _searched(gallery, sample, opened, artifact_path, runtime) as searched:
                reports.append(
                    measure(opened, artifact_path, runtime, device=device, gallery=searched, probes=probes, settings=settings)
                )
            bar.advance(1, reports[-1].title)
    return reports


def _jobs(bundle: Bundle, device: Device, runtimes: list[str], artifacts: list[str]) -> list[tuple[str, str]]:
    """(artifact path, runtime) of each check; what the user named and cannot be checked is an error, else it is said."""
    from samespace.sdk.runtimes.registry import runtime_class, runtimes_for, why_unavailable

    for name in runtimes:
        kind = runtime_class(name)
        if name not in device.runtimes(kind.format):
            raise ConfigError(
                f"runtime {name!r} does not work on device {device.name!r}: {why_unavailable(name) or 'it is not there'}"
            )
    specs = [bundle.artifact(name).spec for name in artifacts] if artifacts else list(bundle.artifacts)
    jobs: list[tuple[str, str]] = []
    for spec in specs:
        fitting = [name for name in device.runtimes(spec.format) if not runtimes or name in runtimes]
        jobs += [(spec.path, name) for name in fitting]
        if not fitting and not runtimes:
            reasons = "; ".join(f"{name}: {why_unavailable(name)}" for name in runtimes_for(spec.format, installed_only=False))
            if artifacts:
                raise ConfigError(f"nothing on device {device.name!r} runs {spec.name}: {reasons}")
            print(f"not checked: {spec.name}, no runtime on device {device.name!r} ({reasons})", file=sys.stderr)
    if not jobs:
        have = ", ".join(spec.name for spec in specs) or "no artifact"
        raise ConfigError(
            f"{bundle.path}: nothing to check: no runtime of {runtimes or 'this device'} runs {have}; install one, "
            "or choose others with --runtime and --artifact"
        )
    return jobs


def _is_url(gallery: str | None) -> bool:
    return gallery is not None and gallery.startswith(("http://", "https://"))


def _read_gallery(gallery: str | None) -> GallerySample | None:
    from samespace.sdk.check import GallerySample

    return None if gallery is None or _is_url(gallery) else GallerySample.from_file(Path(gallery))


@contextmanager
def _searched(
    gallery: str | None, sample: GallerySample | None, bundle: Bundle, artifact: str, runtime: str
) -> Iterator[GallerySample | ServiceGallery | None]:
    """The gallery for one check: a service must first admit the artifact under check."""
    if gallery is None or not _is_url(gallery):
        yield sample
        return
    from samespace.sdk.check import ServiceGallery
    from samespace.sdk.embedder import Embedder
    from samespace.sdk.gallery import GalleryClient

    with Embedder.open(bundle, runtime, artifact) as embedder, GalleryClient(gallery, embedder, bundle=bundle) as client:
        yield ServiceGallery.admitted(client)


def _saved(path: Path) -> list[CompatibilityReport]:
    from samespace.sdk.check import CompatibilityReport

    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with samespace check BUNDLE --json {path}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not JSON that can be read ({error})") from None
    checks = content.get("checks") if isinstance(content, dict) else None
    entries = [entry.get("report") for entry in checks if isinstance(entry, dict)] if isinstance(checks, list) else [content]
    if not entries:
        raise ConfigError(f"{path}: holds no report; write one with samespace check BUNDLE --json {path}")
    return [CompatibilityReport.parse(json.dumps(entry), str(path)) for entry in entries]


def _finish(reports: list[CompatibilityReport], margin: float | None, json_file: Path | None) -> None:
    """Judge, print, write, and exit with the worst outcome."""
    from rich.console import Console

    from samespace.sdk.check import EXIT_CODES, Gate, worst_outcome
    from samespace.sdk.check.render import plain, table
    from samespace.sdk.files import atomic_write

    verdicts: list[Verdict] = []
    for report in reports:
        gate = Gate.of(report)
        verdicts.append((gate if margin is None else gate.replaced(recall_margin=margin / 100)).judge(report))
    outcome = worst_outcome([verdict.outcome for verdict in verdicts])
    to_stdout = json_file is not None and str(json_file) == "-"
    if json_file is not None:
        content: dict[str, Any] = {
            "format_version": _FILE_VERSION,
            "outcome": outcome,
            "checks": [
                {"report": report.model_dump(mode="json"), "verdict": verdict.model_dump(mode="json")}
                for report, verdict in zip(reports, verdicts, strict=True)
            ],
        }
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        if to_stdout:
            print(text, end="")
        else:
            atomic_write(json_file, text)
    if not to_stdout:
        console = Console(highlight=False)
        for report, verdict in zip(reports, verdicts, strict=True):
            if console.is_terminal:
                console.print(table(report, verdict))
            else:
                print(plain(report, verdict) + "\n")
        passed = sum(verdict.outcome == "pass" for verdict in verdicts)
        print(f"{outcome.upper()}: {passed} of {len(verdicts)} checks passed")
    raise typer.Exit(EXIT_CODES[outcome])
