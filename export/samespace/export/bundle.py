"""From a run directory to verified bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.export.conversion import Job, convert
from samespace.export.formats import Conversion, exporter_class
from samespace.export.formats.base import artifact_of
from samespace.export.mistakes import fingerprints
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.export.quantisation.calibration import CalibrationSet, calibration_pictures, needs_calibration
from samespace.export.quantisation.choose import Search
from samespace.export.run import Run, RunModel
from samespace.export.targets import DEFAULT_ARTIFACTS, Artifacts
from samespace.export.torch_runtime import embed
from samespace.export.verify import Agreement, measure_agreement
from samespace.sdk.bundle import artifact_id, write_bundle
from samespace.sdk.check.gate import Gate
from samespace.sdk.errors import ExportError
from samespace.sdk.identity import canonical_json
from samespace.sdk.manifest import Artifact, Manifest
from samespace.sdk.prefix import first_coordinates
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.signing import SigningKey

__all__ = ["Exported", "export_run"]


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Attributes:
        name: of the model in the run.
        path: of the bundle.
        manifest: its manifest.
        agreements: how well its artifacts agree with the model, one for each runtime that judged.
        quantisation: artifact -> how its int8 was chosen, see :func:`samespace.export.quantisation.choose_int8`.
    """

    name: str
    path: Path
    manifest: Manifest
    agreements: tuple[Agreement, ...]
    quantisation: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Made:
    """One artifact of a model, converted and measured."""

    job: Job
    conversion: Conversion
    entry: Artifact
    agreements: tuple[Agreement, ...]


def export_run(
    run: Run,
    models: Sequence[RunModel],
    targets: Sequence[Path],
    signer: SigningKey | None,
    *,
    artifacts: Artifacts | Sequence[tuple[str, Any]] = DEFAULT_ARTIFACTS,
    options: ExportOptions = DEFAULT_OPTIONS,
    calibration: Path | None = None,
    search: Search | None = None,
    force: bool = False,
    workers: int = 2,
    done: Callable[[str], object] = lambda what: None,
    say: Callable[[str], object] = lambda what: None,
) -> list[Exported]:
    """Convert, verify, and only when all is well write the bundles.

    Args:
        run: the run directory.
        models: of the run.
        targets: where each model's bundle goes.
        signer: None writes unsigned bundles.
        artifacts: formats and precisions.
        options: of the exporters; static int8 takes its calibration from ``calibration``.
        calibration: folder of pictures; None takes those of the run.
        search: how far the search for layers that int8 leaves in float may go.
        force: write artifacts that miss their gate; ``evidence.json`` says of each that it failed, and a check fails it. What
            is no embedding at all is never written, nor fp32 that is not the model.
        workers: converters at once; each needs about 1 GiB.
        done: called with a short text after each conversion and each verification, from any thread.
        say: called with what a long conversion is doing, from any thread.

    Raises:
        ConfigError: static int8 without calibration pictures.
        ExportError: a conversion failed, or its result does not match the model; then no bundle is written at all.
    """
    calibrations = _calibrations(run, models, artifacts, calibration)
    jobs = [
        _job(model, format, precision, options, calibrations.get(model.name), search or Search())
        for model in models
        for format, precision in artifacts
    ]
    conversions = convert(jobs, workers, lambda job: done(f"converted {job}"), say)
    cloud = embed(run.cloud.build(), run.cloud.record, run.cloud.record.preprocess.batch(run.probe_images))
    prepared: list[tuple[ProbeSet, list[_Made]]] = []
    for model in models:
        probes, made = _probes(run, model, cloud), []
        for job, conversion in zip(jobs, conversions, strict=True):
            if job.model is model:
                made.append(_measured(job, _described(job, conversion, calibrations), probes))
                done(f"verified {job}")
        prepared.append((probes, made))
    if not force:
        _refuse_what_failed([one for _, made in prepared for one in made])
    return [
        _written(run, model, target, probes, made, signer)
        for model, target, (probes, made) in zip(models, targets, prepared, strict=True)
    ]


def _calibrations(
    run: Run, models: Sequence[RunModel], artifacts: Sequence[tuple[str, Any]], folder: Path | None
) -> dict[str, CalibrationSet]:
    if not any(needs_calibration(*pair) for pair in artifacts):
        return {}
    pictures = calibration_pictures(run, folder)
    return {model.name: pictures.of(model) for model in models}


def _job(
    model: RunModel, format: str, precision: Any, options: ExportOptions, calibration: CalibrationSet | None, search: Search
) -> Job:
    if calibration is None or not needs_calibration(format, precision):
        return Job(model, format, precision, replace(options, calibration=None))
    return Job(model, format, precision, replace(options, calibration=calibration.tensors), calibration.held_out, search)


def _described(job: Job, conversion: Conversion, calibrations: dict[str, CalibrationSet]) -> Conversion:
    if job.options.calibration is None:
        return conversion
    return replace(conversion, recipe=conversion.recipe | {"calibration": calibrations[job.model.name].about})


def _measured(job: Job, conversion: Conversion, probes: ProbeSet) -> _Made:
    entry = artifact_of(conversion, exporter_class(job.format), job.precision, artifact_id(conversion.files))
    record = job.model.record
    loaded = LoadedArtifact(entry, conversion.files, record.preprocess.size, record.dim)
    agreements = measure_agreement(
        loaded, probes.golden, probes.reference, job.model.name, probes=probes, min_litert=job.options.min_litert
    )
    return _Made(job, conversion, entry, agreements)


def _refuse_what_failed(made: Sequence[_Made]) -> None:
    """Raises: ExportError, with every artifact that misses a limit and what was tried."""
    lines = []
    for one in made:
        missed = [agreement.failed for agreement in one.agreements if agreement.failed]
        if missed and (chosen := one.conversion.quantisation):
            missed.append(f"int8 on {chosen['chosen']['n']} held-out calibration pictures: {chosen['why']}")
        lines += missed
    if lines:
        mend = "leave these out, fine-tune with 'samespace quantise', or write them, marked as failed, with --force"
        raise ExportError("\n".join(lines) + f"\nNothing was written: {mend}")


def _written(
    run: Run, model: RunModel, target: Path, probes: ProbeSet, made: Sequence[_Made], signer: SigningKey | None
) -> Exported:
    agreements = tuple(agreement for one in made for agreement in one.agreements)
    quantisation = {one.entry.name: one.conversion.quantisation for one in made if one.conversion.quantisation is not None}
    evidence = [
        *run.matrices,
        *({"kind": "export", "model": model.name, **agreement.to_json()} for agreement in agreements),
        *({"kind": "quantisation", "model": model.name, "artifact": name, **about} for name, about in quantisation.items()),
    ]
    manifest = write_bundle(
        target,
        model=model.record,
        space=run.space,
        artifacts=[(one.entry, one.conversion.files) for one in made],
        files={**probes.to_files(), "evidence.json": canonical_json(evidence)},
        gates={one.job.precision: {"worst_cosine": Gate.default(one.job.precision).worst_cosine} for one in made},
        signer=signer,
    )
    return Exported(model.name, target, manifest, agreements, quantisation)


def _probes(run: Run, model: RunModel, cloud: npt.NDArray[np.float32]) -> ProbeSet:
    """The run's probe images, with what this model makes of them; ``cloud`` is what the cloud model does.

    The cloud's side is cut to the width of a narrower model, since that is what it is compared with.
    """
    record = model.record
    network = model.build()
    golden = record.preprocess.batch(run.probe_images)
    return ProbeSet(
        images=run.probe_images,
        golden=golden,
        reference=embed(network, record, golden),
        cloud=first_coordinates(cloud, record.dim),
        gallery=first_coordinates(run.gallery, record.dim),
        mistakes=fingerprints(network, record, run.probe_images, golden),
        probe_labels=run.probe_labels,
        gallery_labels=run.gallery_labels,
    )
