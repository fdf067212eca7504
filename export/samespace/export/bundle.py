"""From a run directory to verified bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samespace.export.conversion import Job, convert
from samespace.export.formats import Conversion, exporter_class
from samespace.export.formats.base import Precision, artifact_of
from samespace.export.mistakes import fingerprints
from samespace.export.run import Run, RunModel
from samespace.export.torch_runtime import embed
from samespace.export.verify import Agreement, verify
from samespace.sdk.bundle import artifact_id, write_bundle
from samespace.sdk.check.gate import Gate
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import canonical_json
from samespace.sdk.manifest import Artifact, Manifest
from samespace.sdk.prefix import first_coordinates
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.signing import SigningKey

__all__ = ["DEFAULT_ARTIFACTS", "Exported", "export_run", "parse_artifacts"]

#: What is exported unless told otherwise: format and precision.
DEFAULT_ARTIFACTS: tuple[tuple[str, Precision], ...] = (("onnx", "fp32"), ("tflite", "fp32"), ("coreml", "fp16"))


@dataclass(frozen=True)
class Exported:
    """A bundle that was written, and how well its artifacts agree with the model."""

    name: str
    path: Path
    manifest: Manifest
    agreements: tuple[Agreement, ...]


def export_run(
    run: Run,
    models: Sequence[RunModel],
    targets: Sequence[Path],
    signer: SigningKey | None,
    *,
    artifacts: Sequence[tuple[str, Precision]] = DEFAULT_ARTIFACTS,
    workers: int = 2,
    done: Callable[[str], object] = lambda what: None,
) -> list[Exported]:
    """Convert, verify, and only when all is well write the bundles.

    Args:
        run: the run directory.
        models: of the run.
        targets: where each model's bundle goes.
        signer: None writes unsigned bundles.
        artifacts: formats and precisions.
        workers: converters at once; each needs about 1 GiB.
        done: called with a short text after each conversion and each verification, from any thread.

    Raises:
        ExportError: a conversion failed, or its result does not match the model; then no bundle is written at all.
    """
    jobs = [Job(model, format, precision) for model in models for format, precision in artifacts]
    conversions = convert(jobs, workers, lambda job: done(f"converted {job}"))
    cloud = embed(run.cloud.build(), run.cloud.record, run.cloud.record.preprocess.batch(run.probe_images))
    prepared = []
    for model in models:
        probes = _probes(run, model, cloud)
        made = [(job, conversion) for job, conversion in zip(jobs, conversions, strict=True) if job.model is model]
        entries, agreements = [], []
        for job, conversion in made:
            entry = _entry(job, conversion)
            loaded = LoadedArtifact(entry, conversion.files, model.record.preprocess.size, model.record.dim)
            agreements.append(verify(loaded, probes.golden, probes.reference, model.name))
            entries.append((entry, conversion.files))
            done(f"verified {job}")
        prepared.append((probes, entries, agreements))
    exported = []
    for model, target, (probes, entries, agreements) in zip(models, targets, prepared, strict=True):
        evidence = [
            *run.matrices,
            *({"kind": "export", "model": model.name, **agreement.to_json()} for agreement in agreements),
        ]
        manifest = write_bundle(
            target,
            model=model.record,
            space=run.space,
            artifacts=entries,
            files={**probes.to_files(), "evidence.json": canonical_json(evidence)},
            gates={precision: {"worst_cosine": Gate.default(precision).worst_cosine} for _, precision in artifacts},
            signer=signer,
        )
        exported.append(Exported(model.name, target, manifest, tuple(agreements)))
    return exported


def parse_artifacts(names: Sequence[str]) -> tuple[tuple[str, Precision], ...]:
    """``["onnx", "coreml-fp16"]`` to formats and precisions; a bare format takes its default precision.

    Raises:
        ConfigError: an unknown format, or a precision that it has not.
    """
    if not names:
        return DEFAULT_ARTIFACTS
    chosen: list[tuple[str, Precision]] = []
    for name in names:
        format, _, wanted = name.partition("-")
        precisions = exporter_class(format).precisions
        fitting: list[tuple[str, Precision]] = [(format, known) for known in precisions if known == (wanted or precisions[0])]
        if not fitting:
            there = ", ".join(f"{format}-{known}" for known in precisions)
            raise ConfigError(f"{format} is not exported as {wanted!r}; there is: {there}")
        chosen += fitting
    return tuple(dict.fromkeys(chosen))


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


def _entry(job: Job, conversion: Conversion) -> Artifact:
    return artifact_of(conversion, exporter_class(job.format), job.precision, artifact_id(conversion.files))
