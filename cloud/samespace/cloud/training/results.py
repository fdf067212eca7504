"""What a finished run leaves behind: models and their records, the space, probes, and the measured matrix."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import safetensors.torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from samespace.cloud.adapters import apply_procrustes, fit_procrustes, pairs
from samespace.cloud.data import Split
from samespace.cloud.evaluation import Measurement, embed, score
from samespace.cloud.recipe import Recipe
from samespace.cloud.training.data import TrainingData
from samespace.cloud.training.items import described
from samespace.cloud.training.partners import Founder
from samespace.cloud.training.quantised_cost import quantised_costs
from samespace.cloud.training.run import RunDirectory
from samespace.cloud.training.tier import Tier
from samespace.sdk.cli.progress import progress
from samespace.sdk.files import atomic_directory, atomic_write
from samespace.sdk.identity import ModelRecord, SpaceRecord, digest
from samespace.sdk.prefix import comparable
from samespace.sdk.preprocess import Preprocess

__all__ = ["TrainedRun", "read_results", "write_results"]

#: Name of the model that founded the space, where the recipe has it no longer: one that no model of a recipe can have.
FOUNDER = "space.founder"
#: Pictures of unseen classes that travel with every bundle.
PROBES = 128
#: Pixels of a probe's longer edge, at most (or four times the largest model's input, where that is more).
PROBE_EDGE = 384
#: Rows of the cloud gallery that travel with every bundle: at least the first where the data has them, at most the second.
GALLERY_LEAST, GALLERY_MOST = 2000, 4000


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        path: its folder.
        records: tier -> record of its model.
        space: founded by the cloud model.
        matrix: every measured M(a, b).
    """

    path: Path
    records: Mapping[str, ModelRecord]
    space: SpaceRecord
    matrix: Sequence[Measurement]

    def cell(
        self, query: str, gallery: str, adapter: str | None = None, split: str = "test", prefix: int | None = None
    ) -> Measurement:
        """One measured cell.

        Raises:
            KeyError: it was not measured.
        """
        for found in self.matrix:
            if (found.query, found.gallery, found.adapter, found.split, found.prefix) == (
                query,
                gallery,
                adapter,
                split,
                prefix,
            ):
                return found
        raise KeyError(f"M({query}, {gallery}) with adapter {adapter} was not measured on split {split}")


def write_results(
    recipe: Recipe, data: TrainingData, tiers: Mapping[str, Tier], directory: RunDirectory, founder: Founder | None = None
) -> TrainedRun:
    """Write everything that export and the demo read; the matrix last, as the sign that the run is complete."""
    records = {name: _write_model(recipe, name, tiers[name], directory, founder) for name in recipe.models}
    for name, tier in tiers.items():
        if (head := tier.head()) is not None:
            atomic_write(directory.heads / f"{name}.safetensors", _safetensors({"weight": head}))
    atomic_write(directory.heads / "classes.json", json.dumps(data.classes, ensure_ascii=False) + "\n")
    cloud = records[recipe.cloud]
    space = founder.run.space if founder else SpaceRecord(name=recipe.name, founder_model_id=cloud.model_id, dim=cloud.dim)
    atomic_write(directory.space, space.model_dump_json(indent=2) + "\n")
    networks = {name: (tier.model, recipe.models[name].preprocess) for name, tier in tiers.items()}
    gallery = recipe.cloud
    if founder and founder.model != founder.run.cloud:
        # The space is older than the model that this run begins from, and bundles are judged in its founder's gallery.
        gallery, first = FOUNDER, founder.run.cloud
        _write_record(FOUNDER, first.record, first.weights, directory)
        networks[FOUNDER] = first.build(), first.record.preprocess
    encoder = _Encoder(data, networks)
    encoder.prepare(data.split)
    _write_probes(recipe, data, encoder, gallery, directory)
    _write_calibration(data, encoder, gallery, directory)
    if costs := quantised_costs(recipe, data, {name: tier.model for name, tier in tiers.items()}, encoder):
        atomic_write(directory.quantisation, json.dumps(costs, indent=2, allow_nan=False) + "\n")
    _write_embeddings(recipe, data, encoder, directory)
    matrix, scores = _measure_all(recipe, data, encoder)
    atomic_write(directory.queries, safetensors.numpy.save(scores))
    items = described(data, recipe.models[recipe.cloud].preprocess)
    atomic_write(directory.items, json.dumps(items, ensure_ascii=False) + "\n")
    ids = {name: record.model_id for name, record in records.items()}
    cells = [{**cell.as_json(), "query_model_id": ids[cell.query], "gallery_model_id": ids[cell.gallery]} for cell in matrix]
    atomic_write(directory.matrices, json.dumps(cells, indent=2, allow_nan=False) + "\n")
    return TrainedRun(directory.path, records, space, matrix)


def read_results(recipe: Recipe, directory: RunDirectory) -> TrainedRun | None:
    """The results of a run that is complete; None while it is not."""
    if not directory.matrices.exists():
        return None
    records = {
        name: ModelRecord.model_validate_json((directory.models / f"{name}.json").read_bytes()) for name in recipe.models
    }
    space = SpaceRecord.model_validate_json(directory.space.read_bytes())
    matrix = [Measurement.from_json(cell) for cell in json.loads(directory.matrices.read_bytes())]
    return TrainedRun(directory.path, records, space, matrix)


class _Encoder:
    """Embeddings of pictures by name of the model; each picture is embedded once."""

    def __init__(self, data: TrainingData, models: Mapping[str, tuple[nn.Module, Preprocess]]) -> None:
        self._data, self._models = data, models
        self._rows: dict[str, dict[int, npt.NDArray[np.float32]]] = {name: {} for name in models}

    def prepare(self, split: Split) -> None:
        """Embed all that is measured, each model in one go."""
        held_out = (split.validation_query, split.validation_gallery, split.test_query, split.test_gallery)
        indices = [index for part in held_out for index in part]
        with progress("Embedding", len(self._models)) as bar:
            for name in self._models:
                self(name, indices)
                bar.advance(1, name)

    def __call__(self, name: str, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        known = self._rows[name]
        if missing := [index for index in dict.fromkeys(indices) if index not in known]:
            model, preprocess = self._models[name]
            rows = embed(model, self._data.prepared(missing, preprocess), preprocess)
            known.update(zip(missing, rows, strict=True))
        return np.stack([known[index] for index in indices])


def _write_model(recipe: Recipe, name: str, tier: Tier, directory: RunDirectory, founder: Founder | None) -> ModelRecord:
    if founder and name == recipe.cloud:
        record, weights = founder.model.record, founder.model.weights
    else:
        weights = _safetensors(tier.model.state_dict())
        record = _record(recipe, name, weights)
    _write_record(name, record, weights, directory)
    return record


def _write_record(name: str, record: ModelRecord, weights: bytes, directory: RunDirectory) -> None:
    atomic_write(directory.models / f"{name}.safetensors", weights)
    atomic_write(directory.models / f"{name}.json", record.model_dump_json(indent=2) + "\n")


def _record(recipe: Recipe, name: str, weights: bytes) -> ModelRecord:
    spec = recipe.models[name]
    return ModelRecord(
        name=f"{recipe.name}-{name}",
        role=spec.role,
        family=spec.family,
        arguments=spec.builder_arguments,
        dim=spec.dim,
        preprocess=spec.preprocess,
        weights_sha256=digest(weights),
    )


def _write_probes(recipe: Recipe, data: TrainingData, encoder: _Encoder, founder: str, directory: RunDirectory) -> None:
    items, split = data.images.items, data.split
    chosen = data.shuffled(split.test_query)[:PROBES]
    labels = {items[index].label for index in chosen}
    # What a probe can find comes first, then other unseen classes, then seen ones: never a probe itself.
    gallery = sorted(data.shuffled(split.test_gallery), key=lambda index: items[index].label not in labels)[:GALLERY_MOST]
    others = [*data.shuffled(split.validation_gallery), *data.shuffled(split.train)]
    taken = {*gallery, *chosen}
    gallery += [index for index in dict.fromkeys(others) if index not in taken][: max(0, GALLERY_LEAST - len(gallery))]
    largest = max(model.preprocess.size for model in recipe.models.values())
    with atomic_directory(directory.probes) as folder:
        (folder / "images").mkdir()
        for number, index in enumerate(chosen):
            (folder / "images" / f"{number:03d}.png").write_bytes(_probe(data.images.encoded(index), largest))
        (folder / "probes.json").write_text(_labels(data, chosen))
        embeddings = {"embeddings": encoder(founder, gallery)}
        (folder / "gallery.safetensors").write_bytes(safetensors.numpy.save(embeddings))
        (folder / "gallery.json").write_text(_labels(data, gallery))


def _write_calibration(data: TrainingData, encoder: _Encoder, founder: str, directory: RunDirectory) -> None:
    """Training pictures for quantisation, at source size, since each model of the run prepares them for itself."""
    row_of = {index: row for row, index in enumerate(data.split.train)}
    chosen = data.calibration()
    tensors = {
        "pictures": np.ascontiguousarray(data.pictures[[row_of[index] for index in chosen]]),
        "cloud": encoder(founder, chosen),
    }
    with atomic_directory(directory.calibration) as folder:
        (folder / "pictures.safetensors").write_bytes(safetensors.numpy.save(tensors))
        (folder / "labels.json").write_text(_labels(data, chosen))


def _write_embeddings(recipe: Recipe, data: TrainingData, encoder: _Encoder, directory: RunDirectory) -> None:
    """What each model makes of the test split: an upgrade is judged by more than what each query found."""
    sides = {"query": data.split.test_query, "gallery": data.split.test_gallery}
    for name in recipe.models:
        rows = {side: encoder(name, part) for side, part in sides.items() if part}
        atomic_write(directory.embeddings / f"{name}.safetensors", safetensors.numpy.save(rows))


def _measure_all(
    recipe: Recipe, data: TrainingData, encoder: _Encoder
) -> tuple[list[Measurement], dict[str, npt.NDArray[np.float32]]]:
    """Every cell, and what each query found: ``SPLIT/QUERY->GALLERY`` -> recall@1, and ``.../ap`` -> average precision."""
    items, split, cloud = data.images.items, data.split, recipe.cloud
    sides = {
        "validation": (split.validation_query, split.validation_gallery),
        "test": (split.test_query, split.test_gallery),
    }
    # An upgrade's old model also searches what its successor embedded, and edge models both.
    sides_of = {name: (name, cloud, recipe.successor) for name in recipe.models}
    wanted = [(name, other, None, None) for name, others in sides_of.items() for other in dict.fromkeys(others) if other]
    compatible = [name for name, model in recipe.models.items() if model.compatible]
    wanted += [
        (name, cloud, None, width) for name in compatible for width in recipe.prefixes if width < recipe.models[name].dim
    ]
    controls = [name for name in recipe.edges if name not in compatible]
    wanted += [(name, cloud, "procrustes", None) for name in controls]
    fit = data.shuffled(split.train)[: pairs.MOST] if controls else []
    maps = {name: fit_procrustes(*comparable(encoder(name, fit), encoder(cloud, fit))) for name in controls}
    matrix, scores = [], {}
    used = {side: both for side, both in sides.items() if both[0] and both[1]}
    with progress("Measuring", len(used) * len(wanted)) as bar:
        for side, (query, gallery) in used.items():
            labels = [items[index].label for index in query], [items[index].label for index in gallery]
            for a, b, adapter, prefix in wanted:
                rows, columns = comparable(encoder(a, query), encoder(b, gallery), prefix)
                found = score(apply_procrustes(rows, maps[a]) if adapter else rows, columns, *labels)
                matrix.append(Measurement(a, b, side, adapter, found.estimates(), prefix))
                key = f"{side}/{a}" + (f"+{adapter}" if adapter else "") + f"->{b}" + (f"@{prefix}" if prefix else "")
                scores |= {key: found.recall1.astype(np.float32), f"{key}/ap": found.average_precision.astype(np.float32)}
                bar.advance()
    return matrix, scores


def _labels(data: TrainingData, indices: Sequence[int]) -> str:
    return json.dumps({"labels": [data.images.items[index].label for index in indices]}, ensure_ascii=False) + "\n"


def _probe(encoded: bytes, model_size: int) -> bytes:
    """A picture as a bundle carries it: a PNG, because every decoder gives the same pixels for it.

    The orientation tag stays, since a check must see whether an app obeys it; all other metadata (places, names) goes. A
    photo straight from a camera is scaled down, still far above the model's input, lest it make the bundle hundreds of MB.
    """
    image = Image.open(io.BytesIO(encoded))
    most = max(PROBE_EDGE, 4 * model_size)
    fits = max(image.size) <= most
    if image.format == "PNG" and fits and not image.getexif():
        return encoded
    orientation = Image.Exif()
    if (turned := image.getexif().get(ExifTags.Base.Orientation)) is not None:
        orientation[ExifTags.Base.Orientation] = turned
    if image.mode.startswith("I"):  # 16 bits a channel: what Preprocess makes of them
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
    elif image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    if not fits:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    # A new picture of the same pixels: what else the file held does not follow.
    clean = Image.frombytes(image.mode, image.size, image.tobytes())
    buffer = io.BytesIO()
    clean.save(buffer, "PNG", exif=orientation)
    return buffer.getvalue()


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
