"""``samespace bisect``: which operation of an artifact is the first that computes something else than it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from samespace.sdk.bundle import Bundle
    from samespace.sdk.probes import ProbeSet
    from samespace.sdk.runtimes.base import LoadedArtifact

__all__ = ["app"]

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.command(
    epilog="Example: samespace bisect phone.samespace --artifact onnx-int8. "
    "Exit codes: 0 it agrees, 1 it diverges or an error, 2 wrong usage."
)
def bisect(
    bundle: Annotated[Path, typer.Argument(help="Folder or zip of the bundle.", show_default=False)],
    artifact: Annotated[str, typer.Option(help="Artifact that diverges, e.g. onnx-int8.", show_default=False)],
    reference: Annotated[
        str | None,
        typer.Option(
            help="Artifact of the same format to compare with.",
            show_default="the bundle's fp32 artifact; else the artifact itself, run without optimisations",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run directory: compare with a fresh fp32 conversion of its model.", show_default=False),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Runtime in which it diverges.", show_default="the format's first")
    ] = None,
    probes: Annotated[int, typer.Option(min=1, help="Probe images to look at: those that come out worst.")] = 4,
    limit: Annotated[
        float | None,
        typer.Option(min=-1, max=1, help="Lowest cosine that is no divergence.", show_default="the precision's gate"),
    ] = None,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Open a bundle that nobody trusted signed. It is parsed in this process.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Name the first operation of an artifact that diverges, when the check says that it does and not why.

    The intermediate results of the artifact are compared with those of a reference in the same format, operation by
    operation, on the probe images that come out worst.
    """
    from samespace.export.bisect.first import first_divergence
    from samespace.sdk.bundle import Bundle
    from samespace.sdk.errors import ConfigError
    from samespace.sdk.probes import ProbeSet

    if reference is not None and run is not None:
        raise ConfigError("--reference and --run exclude each other; leave one of them out")
    opened = Bundle.open(bundle, allow_unsigned=allow_unsigned)
    suspect = opened.artifact(artifact)
    known = _fresh(opened, suspect, run) if run is not None else _reference(opened, suspect, reference)
    images = _worst(suspect, ProbeSet.from_bundle(opened), runtime, probes)
    found = first_divergence(suspect, known, images, runtime=runtime, limit=limit)
    as_written = None
    if found is not None and known is not None and suspect.spec.format != "coreml":
        # Without the runtime's optimisations: what is gone then is the fault of kernels, not of the file.
        as_written = first_divergence(suspect, known, images, optimise=False, limit=limit) is None
    versus = "itself without optimisations" if known is None else known.spec.name + (" from the run" if run is not None else "")
    if as_json:
        answer = {"artifact": suspect.spec.name, "reference": versus, "agrees": found is None}
        print(json.dumps(answer | {"divergence": found and found.to_json(), "agrees_as_written": as_written}, indent=2))
    elif found is None:
        print(f"{suspect.spec.name} agrees with {versus} on its {len(images)} worst probe images: nothing to bisect")
    else:
        print(f"{suspect.spec.name} against {versus}, {len(images)} worst probe images:\n{found}")
        if as_written:
            print("run as it is written, without the runtime's optimisations, it agrees: the runtime's kernels are at fault")
    raise typer.Exit(int(found is not None))


def _reference(bundle: Bundle, suspect: LoadedArtifact, name: str | None) -> LoadedArtifact | None:
    if name is not None:
        return bundle.artifact(name)
    wanted = f"{suspect.spec.format}-fp32"
    there = [spec.path for spec in bundle.artifacts if spec.name == wanted and spec.path != suspect.spec.path]
    return bundle.artifact(there[0]) if there else None


def _fresh(bundle: Bundle, suspect: LoadedArtifact, path: Path) -> LoadedArtifact:
    """The run's model in the suspect's format, fp32, converted now."""
    from samespace.export.conversion import Job, convert
    from samespace.export.formats import exporter_class
    from samespace.export.formats.base import artifact_of
    from samespace.export.run import read_run
    from samespace.sdk.bundle import artifact_id
    from samespace.sdk.errors import ConfigError

    run = read_run(path)
    models = [model for model in run.models.values() if model.record.model_id == bundle.manifest.model_id]
    if not models:
        raise ConfigError(
            f"{path}: none of its models is that of {bundle.path} ({bundle.manifest.model_id}); give the run it is of"
        )
    conversion = convert([Job(models[0], suspect.spec.format, "fp32")])[0]
    spec = artifact_of(conversion, exporter_class(suspect.spec.format), "fp32", artifact_id(conversion.files))
    return type(suspect)(spec, conversion.files, suspect.size, suspect.dim)


def _worst(suspect: LoadedArtifact, probes: ProbeSet, runtime: str | None, count: int) -> npt.NDArray[np.uint8]:
    """Preprocessed probes whose embeddings are farthest from the model's."""
    import numpy as np

    from samespace.sdk.runtimes.registry import open_runtime

    with open_runtime(suspect, runtime) as opened:
        rows = opened.run(probes.golden).astype(np.float64)
    with np.errstate(all="ignore"):
        cosines = (rows * probes.reference).sum(axis=1) / np.linalg.norm(rows, axis=1)
    # What is no number is worst.
    return probes.golden[np.argsort(np.nan_to_num(cosines, nan=-2.0), kind="stable")[:count]]
