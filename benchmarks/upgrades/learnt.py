"""What two models make of pictures that a fit may use: training pictures for adapters, validation classes for score maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cells import Cells

from samespace.cloud.adapters import pairs
from samespace.cloud.adapters.fit import Material
from samespace.cloud.evaluation import embed
from samespace.cloud.recipe import load_recipe
from samespace.cloud.training.data import TrainingData, load_training_data
from samespace.cloud.training.partners import read_head
from samespace.export.run import read_run
from samespace.sdk.metrics import ScoreMap, fit_score_map, pair_scores

__all__ = ["Learnt", "material", "score_map"]

Rows = npt.NDArray[np.float32]
#: Where the models of the first upgrade are: (run, tier).
OLD = ("bct", "old")
CONTROL = ("bct", "control")


@dataclass(frozen=True)
class Learnt:
    """Embeddings of one repetition, made once and kept in the folder."""

    cells: Cells
    seed: int

    def rows(self, member: tuple[str, str]) -> dict[str, Rows]:
        """``fit`` (training pictures), ``query`` and ``gallery`` (validation classes)."""

        def make() -> dict[str, Rows]:
            data = self.data()
            model = read_run(self.run(member)).models[member[1]]
            network, preprocess = model.build(), model.record.preprocess
            return {
                part: embed(network, data.prepared(rows, preprocess), preprocess) for part, rows in self._parts(data).items()
            }

        return self.cells.kept(self.seed, f"learnt/{member[0]}.{member[1]}", make)

    def data(self) -> TrainingData:
        """What the upgraded models were trained on."""
        return _data(self.run(CONTROL))

    def labels(self, part: str) -> list[str]:
        """Classes of a part's pictures."""
        data = self.data()
        return [data.images.items[index].label for index in self._parts(data)[part]]

    def run(self, member: tuple[str, str]) -> Path:
        """The run of a model."""
        return self.cells.run(self.seed, member[0])

    @staticmethod
    def _parts(data: TrainingData) -> dict[str, list[int]]:
        split = data.split
        return {
            "fit": data.shuffled(split.train)[: pairs.MOST],
            "query": list(split.validation_query),
            "gallery": list(split.validation_gallery),
        }


@cache
def _data(run: Path) -> TrainingData:
    return load_training_data(load_recipe(run / "recipe.toml", "full"))


def material(learnt: Learnt) -> Material:
    """For adapters between the old model and one that was trained without regard to it."""
    old, new = learnt.rows(OLD)["fit"], learnt.rows(CONTROL)["fit"]
    head, classes = read_head(learnt.run(CONTROL), CONTROL[1])
    place = {name: row for row, name in enumerate(classes)}
    return Material(
        learnt.cells.generation(learnt.seed, *OLD),
        learnt.cells.generation(learnt.seed, *CONTROL),
        learnt.cells.pictures(learnt.seed, OLD[0]),
        old,
        new,
        np.array([place[name] for name in learnt.labels("fit")]),
        {"new": head.numpy()},
    )


def score_map(learnt: Learnt, query: Rows, old: Rows, new: Rows) -> ScoreMap:
    """Puts a new model's scores of old items on the scale of its scores of new ones; by validation classes.

    Args:
        query, old, new: ``(n, d)`` queries by the new model, gallery by the old and by the new one.
    """
    labels = learnt.labels("query"), learnt.labels("gallery")
    found = [pair_scores(query, gallery, *labels) for gallery in (old, new)]
    return fit_score_map(*(part for scores, genuine in found for part in (scores[genuine], scores[~genuine])))
