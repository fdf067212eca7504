"""Adapting a trained model to some images: nearer to what was wanted, anchors held, and the bound kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from samespace.cloud.evaluation import embed
from samespace.cloud.finetune.adaptation import write_adaptation
from samespace.cloud.finetune.fit import Fitted, fit
from samespace.cloud.finetune.leaky import converted
from samespace.cloud.finetune.release import adapted
from samespace.cloud.finetune.release import released as make
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


def test_with_many_images_the_optimum_is_the_same(released: Released) -> None:
    exact, steps = released.fit(penalty=1e-2, closed=True), released.fit(penalty=1e-2, closed=False)
    assert exact.steps == 0 < steps.steps
    assert exact.left_out is not None
    assert steps.left_out is steps.influence is None
    assert np.linalg.norm(steps.fitted - exact.fitted) < 5e-3 * np.linalg.norm(exact.fitted)


def test_influence_is_what_leaving_the_image_out_takes_away(released: Released) -> None:
    every = released.fit()
    assert every.influence is not None
    towards = every.fitted / np.linalg.norm(every.fitted, axis=1, keepdims=True)
    own = np.einsum("nd,nd->n", every.fitted - every.left_out, towards)
    np.testing.assert_allclose(np.diag(every.influence), own, rtol=1e-3, atol=1e-5)
    without = fit(released.model, released.pictures[1:], released.targets[1:], released.anchors, trained=["head"])
    taken = np.einsum("nd,nd->n", every.fitted[1:] - without.fitted, towards[1:])
    np.testing.assert_allclose(every.influence[1:, 0], taken, rtol=1e-2, atol=1e-4)


def test_linearised_it_moves_just_as_the_first_order_says(released: Released) -> None:
    found = released.fit(hold=10.0)
    straight = embed(
        make(released.model, [found.adaptation], linearised=True).build(), released.anchors, released.model.record.preprocess
    )
    before = released.embed(released.anchors)
    # The exported graph norms the sum: of a small change along the sphere, that is the change to second order.
    assert np.abs(np.linalg.norm(straight - before, axis=1) - found.drift).max() < found.drift.max() ** 2 + 1e-5
    pictures = embed(
        make(released.model, [found.adaptation], linearised=True).build(), released.pictures, released.model.record.preprocess
    )
    sums = found.before + found.fitted
    np.testing.assert_allclose(pictures, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-5)


def test_a_low_rank_change_is_a_smaller_file_and_near_the_whole(released: Released, tmp_path: Path) -> None:
    whole, low = released.fit(hold=1e-3), released.fit(hold=1e-3, rank=4)
    for name, one in (("whole", whole), ("low", low)):
        write_adaptation(tmp_path / name, one.adaptation, None)
    assert (tmp_path / "low").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
    assert released.distance(low) < released.distance()
    assert low.bound == np.inf
    assert low.drift.max() == pytest.approx(low.adaptation.record.drift)
    with pytest.raises(ConfigError, match="rank must be 1 or more"):
        released.fit(rank=0)


def test_a_converted_model_is_leaky_and_keeps_its_embeddings(released: Released) -> None:
    pictures = np.concatenate([released.pictures, released.anchors])
    found = converted(released.model, pictures, steps=40)
    layers = [type(layer) for layer in found.model.build().modules()]
    assert nn.LeakyReLU in layers
    assert nn.ReLU not in layers
    assert found.cosines.mean() > max(found.recalibrated.mean(), 0.8)
    assert fit(found.model, released.pictures, released.targets, released.anchors, trained=["head"]).drift.size
    with pytest.raises(ConfigError, match="no ReLU that could"):
        converted(found.model, pictures)
    with pytest.raises(DataError, match="too few"):
        converted(released.model, pictures[:3])


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
