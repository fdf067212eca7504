"""Adapting a trained model to some images: nearer to what was wanted, anchors held, and the bound kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.cloud.evaluation import embed
from samespace.cloud.finetune import fit as fitting
from samespace.cloud.finetune.fit import Fitted, adapted, fit
from samespace.cloud.recipe import Recipe
from samespace.cloud.training import train
from samespace.cloud.training.data import load_training_data
from samespace.export.run import RunModel, read_run
from samespace.sdk.errors import ConfigError, DataError


class Released:
    """A trained model, pictures of unseen classes with their prototypes in its space, and anchors."""

    def __init__(self, content: dict[str, Any], folder: Path) -> None:
        recipe = Recipe.model_validate({**content, "models": {"cloud": content["models"]["cloud"]}})
        train(recipe, folder)
        self.model: RunModel = read_run(folder).newest
        data, preprocess = load_training_data(recipe), self.model.record.preprocess
        self.pictures = np.asarray(data.prepared(data.split.test_gallery[:12], preprocess))
        self.anchors = np.asarray(data.prepared(data.split.train[:6], preprocess))
        chance = np.random.default_rng(0)
        near = self.embed(self.pictures) + 0.05 * chance.normal(size=(len(self.pictures), self.model.record.dim))
        self.targets = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)

    def embed(self, pictures: np.ndarray, *fits: Fitted) -> np.ndarray:
        network = adapted(self.model, [one.adaptation for one in fits])
        return embed(network, pictures, self.model.record.preprocess)

    def fit(self, **options: Any) -> Fitted:
        return fit(self.model, self.pictures, self.targets, self.anchors, trained=["head"], **options)

    def distance(self, *fits: Fitted) -> float:
        return float(np.linalg.norm(self.embed(self.pictures, *fits) - self.targets, axis=1).mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("released")


@pytest.fixture
def released(recipe_content: Callable[..., dict[str, Any]], folder: Path) -> Released:
    return Released(recipe_content(name="released", mode="sequential"), folder / "run")


def test_it_comes_nearer_and_holds_the_anchors(released: Released) -> None:
    free, held = released.fit(hold=1e-3), released.fit(hold=1e3)
    before = released.distance()
    assert released.distance(free) < released.distance(held) < before
    for found in (free, held):
        assert found.drift.max() <= found.bound
        assert found.adaptation.record.drift == pytest.approx(found.drift.max())
        now = released.embed(released.anchors, found) - released.embed(released.anchors)
        np.testing.assert_allclose(found.measured, np.linalg.norm(now, axis=1), atol=1e-6)
    assert held.measured.max() < free.measured.max() / 5


def test_with_many_images_the_optimum_is_the_same(released: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = released.fit(penalty=1e-2)
    monkeypatch.setattr(fitting, "MOST", 0)
    steps = released.fit(penalty=1e-2)
    assert exact.left_out is not None
    assert steps.left_out is None
    for name, change in exact.adaptation.tensors.items():
        np.testing.assert_allclose(steps.adaptation.tensors[name], change, atol=2e-3 * np.abs(change).max())


def test_taking_one_out_gives_back_the_network_without_it(released: Released) -> None:
    one, two = released.fit(hold=1e-3), released.fit(hold=1e3)
    np.testing.assert_array_equal(released.embed(released.pictures), embed_of(released))
    np.testing.assert_array_equal(released.embed(released.pictures, one, two), released.embed(released.pictures, two, one))
    assert not np.array_equal(released.embed(released.pictures, one, two), released.embed(released.pictures, two))


def test_what_does_not_fit_is_said(released: Released) -> None:
    with pytest.raises(DataError, match="one of each picture"):
        fit(released.model, released.pictures, released.targets[:3], released.anchors)
    with pytest.raises(ConfigError, match=r"no parameters called 'tail'; it has: .*head"):
        fit(released.model, released.pictures, released.targets, released.anchors, trained=["tail"])


def embed_of(released: Released) -> np.ndarray:
    return embed(released.model.build(), released.pictures, released.model.record.preprocess)
