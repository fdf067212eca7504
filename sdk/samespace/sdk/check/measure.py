"""Measuring an artifact on a device, in three layers: tensor, embedding, retrieval. No verdict here; see :mod:`.gate`."""

from __future__ import annotations

import shlex
from importlib.metadata import version

import numpy as np
import numpy.typing as npt

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.app import APP, AppDevice
from samespace.sdk.check.cases import worst_cases
from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.gate import Gate
from samespace.sdk.check.hard import hard_queries
from samespace.sdk.check.report import (
    CompatibilityReport,
    EmbeddingLayer,
    RetrievalLayer,
    Settings,
    Suspect,
    TensorLayer,
    WorstCase,
)
from samespace.sdk.check.retrieval import measure_retrieval
from samespace.sdk.check.service import ServiceGallery
from samespace.sdk.devices import Device, DeviceRun, open_device
from samespace.sdk.embedder import unit_norm
from samespace.sdk.errors import ConfigError, EmbeddingError, RuntimeFailure
from samespace.sdk.identity import utc_now
from samespace.sdk.metrics import bootstrap_mean, cosine, max_angle, worst_percentile
from samespace.sdk.metrics.arrays import row_chunks
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import RuntimeOptions

__all__ = ["measure"]


def measure(
    bundle: Bundle,
    artifact: str | None = None,
    runtime: str | None = None,
    *,
    device: Device | None = None,
    gallery: GallerySample | ServiceGallery | None = None,
    probes: ProbeSet | None = None,
    settings: Settings | None = None,
) -> CompatibilityReport:
    """Run one artifact on the bundle's probe images and measure how well it agrees.

    Args:
        bundle: an opened bundle.
        artifact: name, path or format of the artifact; may be None when the bundle has one only.
        runtime: name of the runtime; by default the device's best for the format.
        device: where to run; by default this machine.
        gallery: what to search; by default the sample in the bundle.
        probes: already read probes of this bundle, to save reading them again.
        settings: seeds and sizes.

    Returns:
        The numbers, and what would explain them where the default gate does not pass. An artifact that does not run, or gives
        what is no embedding, gives a report with ``refused`` and without the embedding and retrieval layers.

    Raises:
        BundleError: the bundle has no usable probes.
        ConfigError: no such artifact, or no runtime for it on the device.
        SpaceMismatchError: the gallery is of another space.
    """
    settings = settings or Settings()
    device = device or open_device()
    probes = probes or ProbeSet.from_bundle(bundle)
    gallery = gallery or GallerySample.from_probes(probes, bundle.manifest)
    if isinstance(gallery, GallerySample):
        gallery = gallery.comparable(bundle.manifest)
    spec = bundle.artifact(_only(bundle) if artifact is None else artifact).spec
    runtime = runtime or next(iter(device.runtimes(spec.format)), None)
    if runtime is None:
        raise ConfigError(f"device {device.name!r} has no runtime for {spec.path}; install one, or choose another artifact")

    options = RuntimeOptions(threads=settings.threads, batch_size=settings.batch_size)
    run = device.embed(bundle, spec.path, runtime, probes.images, options)
    embeddings, refused = _usable(run, probes.reference.shape, f"{spec.path} in {runtime}")
    tensor = None if run.tensors is None else _tensor_layer(run.tensors, probes.golden, settings)
    embedding = None if embeddings is None else _embedding_layer(embeddings, probes, settings)
    retrieval = None if embeddings is None else _retrieval_layer(embeddings, probes, gallery, bundle, settings)
    report = CompatibilityReport(
        created=utc_now(),
        samespace=version("samespace"),
        bundle=str(bundle.path),
        signer=bundle.signer,
        trusted=bundle.trusted,
        model=bundle.manifest.model.name,
        model_id=bundle.manifest.model_id,
        space_id=bundle.manifest.space_id,
        artifact=spec.name,
        artifact_id=spec.artifact_id,
        precision=spec.precision,
        device=device.name,
        runtime=runtime,
        runtime_version=run.runtime_version,
        host=dict(run.host),
        settings=settings,
        gates=bundle.manifest.gates.get(spec.precision, {}),
        reproduce=_command(bundle, spec.name, runtime, device, gallery, settings),
        refused=refused,
        tensor=tensor,
        embedding=embedding,
        retrieval=retrieval,
        cases=worst_cases(run.tensors, embeddings, (tensor, embedding, retrieval), probes, gallery, settings),
    )
    if Gate.of(report).judge(report).outcome == "pass":
        return report
    return report.model_copy(update={"diagnosis": _diagnosed(bundle, spec.path, run, probes)})


def _only(bundle: Bundle) -> str:
    if len(bundle.artifacts) != 1:
        names = ", ".join(artifact.name for artifact in bundle.artifacts) or "none"
        raise ConfigError(f"{bundle.path}: say which artifact to measure; there is: {names}")
    return bundle.artifacts[0].path


def _usable(run: DeviceRun, shape: tuple[int, ...], made_by: str) -> tuple[npt.NDArray[np.float32] | None, str]:
    """The embeddings if they are any, and why not."""
    if run.embeddings is None:
        return None, run.refused or f"{made_by}: no embeddings, and no reason given"
    if run.embeddings.shape != shape:
        return None, f"{made_by}: embeddings of shape {run.embeddings.shape}, expected {shape}"
    try:
        return unit_norm(run.embeddings, made_by), ""
    except (EmbeddingError, RuntimeFailure) as error:
        return None, str(error)


def _diagnosed(bundle: Bundle, artifact: str, run: DeviceRun, probes: ProbeSet) -> tuple[Suspect, ...] | None:
    """None where there is nothing that could be compared."""
    if run.embeddings is None or run.embeddings.shape != probes.reference.shape:
        return None
    # Only what failed pays for it: it embeds the probes once more.
    from samespace.sdk.check.diagnosis import diagnose

    tensors = None if run.tensors is None or run.tensors.dtype != np.uint8 else run.tensors.astype(np.uint8)
    causes = diagnose(bundle, artifact, run.embeddings, tensors).causes
    return tuple(Suspect(name=cause.name, summary=cause.summary, mend=cause.mend, fit=cause.fit) for cause in causes)


def _tensor_layer(tensors: npt.NDArray[np.generic], golden: npt.NDArray[np.uint8], settings: Settings) -> TensorLayer:
    if tensors.shape != golden.shape:
        # Nothing can be compared value by value: every image is as wrong as can be.
        difference = np.full(len(golden), 255)
    else:
        # An app may show the floats that it feeds. Less than a level is a difference, too, and NaN is the largest.
        wide = np.abs(tensors.astype(np.float32) - golden)
        difference = np.nan_to_num(np.ceil(wide), nan=255).clip(0, 255).reshape(len(golden), -1).max(axis=1).astype(np.int64)
    return TensorLayer(
        n=len(golden),
        exact=int((difference == 0).sum()),
        max_difference=int(difference.max()),
        worst=tuple(
            WorstCase(probe=case.probe, value=-case.value)
            for case in WorstCase.lowest(-difference.astype(np.float64), settings.worst_cases)
            if case.value
        ),
    )


def _embedding_layer(embeddings: npt.NDArray[np.float32], probes: ProbeSet, settings: Settings) -> EmbeddingLayer:
    agreement = cosine(embeddings, probes.reference)
    # The bundle's own sample, whatever gallery is searched: the shift is to be comparable from check to check.
    nearest = probes.gallery[_nearest_item(probes.reference, probes.gallery)]
    shift = cosine(embeddings, nearest) - cosine(probes.reference, nearest)
    return EmbeddingLayer(
        n=len(agreement),
        worst_cosine=worst_percentile(agreement, settings.worst_percent),
        min_cosine=float(agreement.min()),
        mean_cosine=bootstrap_mean(agreement, settings.n_boot, settings.seed, settings.confidence),
        max_angle=max_angle(embeddings, probes.reference),
        score_shift=bootstrap_mean(shift, settings.n_boot, settings.seed, settings.confidence),
        max_score_shift=float(np.abs(shift).max()),
        worst=WorstCase.lowest(agreement, settings.worst_cases),
        cosine=tuple(agreement.tolist()),
    )


def _retrieval_layer(
    embeddings: npt.NDArray[np.float32],
    probes: ProbeSet,
    gallery: GallerySample | ServiceGallery,
    bundle: Bundle,
    settings: Settings,
) -> RetrievalLayer:
    if isinstance(gallery, ServiceGallery):
        layer = gallery.measure(embeddings, probes, settings)
        # A service shows its nearest items only: how hard a query is, the bundle's own sample tells.
        sample = GallerySample.from_probes(probes, bundle.manifest).comparable(bundle.manifest)
    else:
        layer, sample = measure_retrieval(embeddings, probes, gallery, settings), gallery
    return layer.model_copy(update={"hard": hard_queries(layer, probes, sample, settings)})


def _nearest_item(queries: npt.NDArray[np.float32], gallery: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    chunks = row_chunks(len(queries), len(gallery))
    return np.concatenate([(queries[rows] @ gallery.T).argmax(axis=1) for rows in chunks])


def _command(
    bundle: Bundle, artifact: str, runtime: str, device: Device, gallery: GallerySample | ServiceGallery, settings: Settings
) -> str:
    words = ["samespace", "check", str(bundle.path), "--artifact", artifact]
    if isinstance(device, AppDevice):
        if not device.words:
            return ""  # it came from no file
        words += device.words
    else:
        words += ["--runtime", runtime]
    if device.name not in ("host", APP):
        words += ["--device", device.name]
    if gallery.location:
        words += ["--gallery", gallery.location]
    standard = Settings()
    for option in ("seed", "threads"):
        if getattr(settings, option) != getattr(standard, option):
            words += [f"--{option}", str(getattr(settings, option))]
    return shlex.join(words) + ("" if bundle.trusted else " --allow-unsigned")
