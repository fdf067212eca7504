"""Embeds the unseen test classes with every model and every exported artifact, and searches the cloud's gallery with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from pictures import Hit, SheetRow
from table import Side, Table, milliseconds_per_image

from samespace.cloud.adapters.procrustes import apply_procrustes, fit_procrustes
from samespace.cloud.data import ImageSet, Split, make_split, open_dataset
from samespace.cloud.evaluation import embed
from samespace.cloud.recipe import Recipe, load_recipe
from samespace.edge.models.macs import count
from samespace.export import Run, read_run
from samespace.sdk import Bundle, Embedder, GalleryClient, Preprocess, RuntimeOptions
from samespace.sdk.metrics import cosine, worst_percentile

__all__ = ["ARTIFACTS", "CONTROL", "SHEET_ARTIFACT", "Demo"]

CONTROL = "control"
#: The group of the table's rows that exported artifacts made.
ARTIFACTS = "Exported artifact, cloud gallery"
#: The artifact that answers on the page.
SHEET_ARTIFACT = "tflite-fp32"
#: Queries that the Core ML reference evaluator judges: it is slower than a runtime, and this many settle its figure.
COREML_QUERIES = 500
_SHEET_ROWS, _SHEET_HITS = 14, 5
_FIT_PICTURES = 4000


@dataclass(eq=False)
class Demo:
    """A trained run, its bundles, and the test classes."""

    run: Run
    folder: Path
    bundles: Path
    recipe: Recipe
    images: ImageSet
    split: Split
    seed: int = 0
    #: Artifact -> worst-1 % cosine to its torch model, over the queries that it embedded; filled by :meth:`table`.
    worst_cosines: dict[str, float] = field(default_factory=dict)
    _prepared: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Path, bundles: Path) -> Self:
        """Open what ``samespace train`` and ``samespace export`` wrote."""
        recipe = load_recipe(run / "recipe.toml", "full")
        images = open_dataset(recipe.data)
        return cls(read_run(run), run, bundles, recipe, images, make_split(recipe.data, images), recipe.seed)

    @property
    def edges(self) -> list[str]:
        """The compatible edge models."""
        return [name for name, model in self.recipe.edges.items() if model.compatible]

    def labels(self, indices: Sequence[int]) -> list[str]:
        return [self.images.items[index].label for index in indices]

    def write_photos(self, folder: Path) -> None:
        """Write gallery and query pictures as a user would have them: ``gallery/CLASS/SOURCE.png``, ``query/...``."""
        for name, indices in (("gallery", self.split.test_gallery), ("query", self.split.test_query)):
            for index in indices:
                path = folder / name / self._file(index)
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self.images.encoded(index))

    def some_query(self, photos: Path) -> Path:
        """One query picture, drawn at random."""
        return photos / "query" / self._file(self._drawn[0])

    def search(self, url: str) -> list[SheetRow]:
        """Ask the gallery service with the exported phone model; rank the same gallery for the control."""
        by_path = {str(self._file(index)): index for index in self.split.test_gallery}
        control = self._torch(CONTROL, self._drawn)
        ranking = np.argsort(-(control @ self.cloud_gallery.T), axis=1, kind="stable")[:, :_SHEET_HITS]
        rows = []
        bundle = self.bundles / f"{self.edges[0]}.samespace"
        with Embedder.open(bundle, artifact=SHEET_ARTIFACT) as embedder, GalleryClient(url, embedder) as client:
            client.handshake()
            for query, control_hits in zip(self._drawn, ranking, strict=True):
                found = [by_path[str(hit.metadata["path"])] for hit in client.search(self.images.encoded(query), k=_SHEET_HITS)]
                picked = [self.split.test_gallery[hit] for hit in control_hits]
                rows.append(SheetRow(self.images.load(query), self._hits(query, found), self._hits(query, picked)))
        return rows

    def table(self) -> Table:
        """Every row of the demo's table."""
        split = self.split
        table = Table(self.labels(split.test_query), self.labels(split.test_gallery), self.seed)
        cloud = self.recipe.cloud
        queries = {name: self._torch(name, split.test_query) for name in (cloud, *self.edges, CONTROL)}

        table.add(
            "One model on both sides", f"{cloud} → {cloud}", Side(queries[cloud]), self.cloud_gallery, **self._cost(cloud)
        )
        for name in self.edges:
            gallery = self._torch(name, split.test_gallery)
            table.add("One model on both sides", f"{name} → {name}", Side(queries[name]), gallery, **self._cost(name))
        for name in self.edges:
            table.add(
                "Edge query, cloud gallery", f"{name} → {cloud}", Side(queries[name]), self.cloud_gallery, **self._cost(name)
            )
        for name in (*self.edges, cloud):
            self._add_artifacts(table, name, queries[name])
        side = Side(queries[CONTROL])
        table.add("Without co-training", f"{CONTROL} → {cloud}", side, self.cloud_gallery, **self._cost(CONTROL))
        rotated = Side(self._rotated(queries[CONTROL]))
        table.add(
            "Without co-training", f"{CONTROL} + Procrustes → {cloud}", rotated, self.cloud_gallery, **self._cost(CONTROL)
        )
        gallery = self._torch(CONTROL, split.test_gallery)
        table.add("Without co-training", f"{CONTROL} → {CONTROL}", side, gallery, **self._cost(CONTROL))
        return table

    @cached_property
    def cloud_gallery(self) -> npt.NDArray[np.float32]:
        """The test gallery as the exported cloud bundle embeds it: what the gallery service holds."""
        with Embedder.open(self.bundles / f"{self.recipe.cloud}.samespace", artifact="onnx-fp32") as embedder:
            return embedder.embed_tensors(self._pictures(embedder.preprocess, self.split.test_gallery))

    @cached_property
    def _drawn(self) -> list[int]:
        generator = np.random.default_rng(self.seed)
        query = self.split.test_query
        return [query[index] for index in generator.choice(len(query), min(_SHEET_ROWS, len(query)), replace=False)]

    def _add_artifacts(self, table: Table, name: str, reference: npt.NDArray[np.float32]) -> None:
        bundle = Bundle.open(self.bundles / f"{name}.samespace")
        everything = np.arange(len(self.split.test_query))
        for artifact in bundle.artifacts:
            rows = everything
            if artifact.format == "coreml" and len(rows) > COREML_QUERIES:
                rows = np.sort(np.random.default_rng(self.seed).choice(rows, COREML_QUERIES, replace=False))
            with Embedder.open(bundle, artifact=artifact.name, options=RuntimeOptions(threads=1)) as embedder:
                pictures = self._pictures(embedder.preprocess, [self.split.test_query[row] for row in rows])
                side = Side(embedder.embed_tensors(pictures), rows=rows)
                self.worst_cosines[f"{name} {artifact.name}"] = worst_percentile(cosine(side.query, reference[rows]), 1.0)
                cost = self._cost(name) | {
                    "file": f"{sum(map(len, bundle.artifact(artifact.name).files.values())) / 1e6:.2f} MB",
                    # The reference evaluator stands for a phone's numbers, not for its speed.
                    "milliseconds": ""
                    if artifact.format == "coreml"
                    else milliseconds_per_image(embedder.embed_tensors, pictures),
                }
            label = f"{name} {artifact.name} → {self.recipe.cloud}"
            table.add(ARTIFACTS, label, side, self.cloud_gallery, **cost)

    @cache  # noqa: B019 - a demo lives as long as its process
    def _cost(self, name: str) -> dict[str, str]:
        record, network = self.run.models[name].record, self.run.models[name].build()
        cost = count(network, record.preprocess.size)
        pictures = self._pictures(record.preprocess, self.split.test_query)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        milliseconds = milliseconds_per_image(lambda images: embed(network, images, record.preprocess), pictures)
        torch.set_num_threads(threads)
        return {
            "parameters": f"{cost.params / 1e6:.2f} M",
            "macs": f"{cost.macs / 1e6:.1f} M",
            "file": "torch",
            "milliseconds": milliseconds,
        }

    def _torch(self, name: str, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        model = self.run.models[name]
        preprocess = model.record.preprocess
        return embed(model.build(), self._pictures(preprocess, indices), preprocess)

    def _rotated(self, query: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # Fitted on training classes only: nothing of the test classes may leak into the baseline.
        train = list(self.split.train)
        if len(train) > _FIT_PICTURES:
            train = [
                train[index] for index in np.random.default_rng(self.seed).choice(len(train), _FIT_PICTURES, replace=False)
            ]
        rotation = fit_procrustes(self._torch(CONTROL, train), self._torch(self.recipe.cloud, train))
        return apply_procrustes(query, rotation)

    def _pictures(self, preprocess: Preprocess, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        key = f"{preprocess.model_dump_json()} {hash(tuple(indices))}"
        if key not in self._prepared:
            self._prepared[key] = preprocess.batch(self.images.encoded(index) for index in indices)
        return self._prepared[key]

    def _file(self, index: int) -> Path:
        item = self.images.items[index]
        return Path(_plain(item.label)) / f"{_plain(item.source)}-{index}.png"

    def _hits(self, query: int, found: Sequence[int]) -> list[Hit]:
        label = self.images.items[query].label
        return [Hit(self.images.load(index), self.images.items[index].label == label) for index in found]


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "x"
