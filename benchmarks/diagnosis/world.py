"""What is diagnosed: bundles of a run's models with probes of several kinds, and artifacts that take values of any range."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from PIL import Image

from samespace.export import Run
from samespace.export.formats import exporter_class
from samespace.export.formats.base import Conversion, Precision, artifact_of
from samespace.export.graph import DeviceGraph
from samespace.export.mistakes import fingerprints
from samespace.export.options import ExportOptions
from samespace.export.run import RunModel
from samespace.export.torch_runtime import embed
from samespace.sdk.bundle import Bundle, artifact_id, write_bundle
from samespace.sdk.identity import ModelRecord
from samespace.sdk.prefix import first_coordinates
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.onnx import load_onnxruntime
from samespace.sdk.signing import SigningKey, TrustStore

__all__ = ["PRECISIONS", "PROBE_SETS", "AnyRange", "Subject", "photos", "subjects", "written"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
#: Name -> fit of the preprocessing. The run's own probes; crops of photographs, some turned by their EXIF orientation.
PROBE_SETS = {"own": "pad", "photos-cropped": "crop", "photos-padded": "pad"}
_KEY = SigningKey.new()


@dataclass(frozen=True, eq=False)
class Subject:
    """A bundle of one model with one kind of probes.

    Attributes:
        name: ``model/probe set``.
        model: the run's model.
        preprocess: of the bundle; its fit is the probe set's.
        probes: of the bundle.
        bundle: with an ONNX artifact of each of :data:`PRECISIONS`.
        artifacts: precision -> the same graph, taking float values of any range.
    """

    name: str
    model: RunModel
    preprocess: Preprocess
    probes: ProbeSet
    bundle: Bundle
    artifacts: dict[str, AnyRange] = field(repr=False)

    def with_references(self, reference: np.ndarray, mistakes: dict[str, np.ndarray]) -> ProbeSet:
        """These probes, of another network."""
        return replace(self.probes, reference=reference, mistakes=mistakes)

    def drawn(self, rows: np.ndarray, folder: Path) -> Subject:
        """The same with some of the probes only; ``rows`` are below the number that pairs of mistakes are kept for."""
        kept = replace(
            self.probes,
            images=tuple(self.probes.images[row] for row in rows),
            golden=self.probes.golden[rows],
            reference=self.probes.reference[rows],
            cloud=self.probes.cloud[rows],
            mistakes={name: made[rows] for name, made in self.probes.mistakes.items()},
            probe_labels=None,
        )
        entries = [(spec, dict(self.bundle.artifact(spec.path).files)) for spec in self.bundle.artifacts]
        return replace(self, probes=kept, bundle=written(folder, self.bundle, kept, entries))


class AnyRange:
    """An ONNX artifact whose input was made float, so that an app's mistakes in what values mean can be fed to it."""

    def __init__(self, model: bytes) -> None:
        ort = load_onnxruntime()
        graph = onnx.load_model_from_string(model)
        graph.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """``(n, size, size, 3)`` float32 to ``(n, d)`` float32."""
        name = self._session.get_inputs()[0].name
        parts = [self._session.run(None, {name: values[start : start + 32]})[0] for start in range(0, len(values), 32)]
        return np.concatenate(parts)


def subjects(run: Run, models: Sequence[RunModel], folder: Path, count: int) -> Iterator[Subject]:
    """Every model with every kind of probes, ``count`` probes each."""
    pictures = {
        "own": run.probe_images[:count],
        **{name: photos(count, seed) for seed, name in enumerate(list(PROBE_SETS)[1:])},
    }
    for model in models:
        network = model.build()
        conversions = _converted(model, run)
        for name, images in pictures.items():
            preprocess = model.record.preprocess.model_copy(update={"fit": PROBE_SETS[name]})
            record = model.record.model_copy(update={"preprocess": preprocess})
            golden = preprocess.batch(images)
            cloud = run.cloud.record.preprocess.model_copy(update={"fit": preprocess.fit}).batch(images)
            probes = ProbeSet(
                images=tuple(images),
                golden=golden,
                reference=embed(network, record, golden),
                cloud=first_coordinates(embed(run.cloud.build(), run.cloud.record, cloud), record.dim),
                gallery=first_coordinates(run.gallery, record.dim),
                mistakes=fingerprints(network, record, tuple(images), golden),
            )
            exporter = exporter_class("onnx")
            entries = [
                (artifact_of(made, exporter, precision, artifact_id(made.files)), dict(made.files))
                for precision, made in conversions.items()
            ]
            path = folder / f"{model.name}-{name}"
            bundle = written(path, (record, run), probes, entries)
            artifacts = {precision: AnyRange(made.files[""]) for precision, made in conversions.items()}
            yield Subject(f"{model.name}/{name}", model, preprocess, probes, bundle, artifacts)


def photos(count: int, seed: int) -> tuple[bytes, ...]:
    """Cuts of real photographs as JPEG, 90 to 400 pixels a side, a third of them turned by their EXIF orientation."""
    sources = _sources()
    generator = np.random.default_rng(seed)
    found = []
    for index in range(count):
        source = sources[index % len(sources)]
        height, width = (int(generator.integers(90, min(length, 400))) for length in (source.height, source.width))
        left, top = int(generator.integers(source.width - width + 1)), int(generator.integers(source.height - height + 1))
        exif = Image.Exif()
        if index % 3 == 1:
            exif[0x0112] = int(generator.choice([3, 6, 8]))
        file = io.BytesIO()
        source.crop((left, top, left + width, top + height)).save(file, "JPEG", quality=92, exif=exif)
        found.append(file.getvalue())
    return tuple(found)


def _sources() -> list[Image.Image]:
    """The photographs that scikit-learn ships, and scikit-image's where it is installed."""
    from sklearn.datasets import load_sample_images

    found = [Image.fromarray(picture) for picture in load_sample_images().images]
    try:
        from skimage import data
    except ImportError:
        return found
    return found + [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]


def _converted(model: RunModel, run: Run) -> dict[Precision, Conversion]:
    if run.calibration is not None:
        pictures = run.calibration.prepared(model.record.preprocess)
    else:  # an older run: its own probes, which is no matter where int8 itself is not judged
        pictures = model.record.preprocess.batch(run.probe_images)
    exporter = exporter_class("onnx")()
    graph = DeviceGraph(model.build(), model.record.preprocess)
    options = ExportOptions(calibration=pictures[:128])
    return {precision: exporter.convert(graph, precision, options) for precision in PRECISIONS}


def written(path: Path, source: Bundle | tuple[ModelRecord, Run], probes: ProbeSet, entries: list) -> Bundle:
    """A signed bundle, written and opened; model and space are the bundle's, or the record and the run's."""
    if isinstance(source, Bundle):
        record, space = source.manifest.model, source.manifest.space
    else:
        record, space = source[0], source[1].space
    files = {**probes.to_files(), "evidence.json": b"[]"}
    write_bundle(path, model=record, space=space, artifacts=entries, files=files, gates={}, signer=_KEY)
    trust = TrustStore(path.parent / "trusted")
    trust.add(_KEY.public, "benchmark")
    return Bundle.open(path, trust=trust)
