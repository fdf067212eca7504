"""Models that share weights while they are trained: one head for all, and one slimmable network for many widths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from samespace.cloud.losses import CosineSoftmax, Partner
from samespace.cloud.recipe import Recipe, load_recipe
from samespace.cloud.training import RunDirectory, TrainedRun, read_log, train
from samespace.cloud.training.device import World
from samespace.cloud.training.partners import partner_of
from samespace.cloud.training.sharing import SharedSoftmax, family_of, separate, share
from samespace.cloud.training.stages import stages_of
from samespace.cloud.training.tier import Tier, build_tier
from samespace.edge.models.blocks import StagedNet
from samespace.edge.models.slimmable import SlimmableResidual
from samespace.export.run import read_run

Make = Callable[..., dict[str, Any]]

SFSC = {"weights": "uncertainty", "project_conflicts": True, "shared_head": True}


@pytest.fixture
def family_content(recipe_content: Make) -> Make:
    """A cloud model of width 8, a phone of width 6 and a watch of width 4 in its network, and a control."""

    def make(owner: str = "cloud", **changes: Any) -> dict[str, Any]:
        content = recipe_content(**changes)
        models = content["models"]
        phone = {**models["phone"], "arguments": {**models["phone"]["arguments"], "width": 6}}
        watch = {**models["phone"], "arguments": {**models["phone"]["arguments"], "width": 4}, "shares": owner}
        models = {**models, "phone": {**phone, "shares": owner} if owner != "phone" else phone, "watch": watch}
        return {**content, "models": models, "losses": {"cosine_softmax": {}, "regression": {"weight": 5.0}}}

    return make


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def sfsc(_folder: Path, family_content: Make) -> TrainedRun:
    """The same finished run for all tests of this module."""
    run = train(Recipe.model_validate(family_content(joint=SFSC)), _folder / "sfsc")
    assert run is not None
    return run


def build(content: dict[str, Any]) -> tuple[Recipe, dict[str, Tier]]:
    recipe = Recipe.model_validate(content)
    tiers = {name: build_tier(recipe, name, classes=3) for name in recipe.models}
    share(recipe, tiers)
    return recipe, tiers


def weights(run: TrainedRun, name: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.path / "models" / f"{name}.safetensors")


def test_every_width_is_written_as_an_ordinary_model(sfsc: TrainedRun) -> None:
    for name, width in (("cloud", 8), ("phone", 6), ("watch", 4), ("control", 4)):
        record = sfsc.records[name]
        assert (record.family, record.arguments["width"]) == ("residual", width)
        assert sfsc.cell(name, "cloud").metrics["recall@1"].n > 0
    run = read_run(sfsc.path)  # as export reads it
    assert isinstance(run.cloud.build(), StagedNet)


def test_widths_share_all_weights_but_the_norms(sfsc: TrainedRun) -> None:
    cloud, watch, control = (weights(sfsc, name) for name in ("cloud", "watch", "control"))
    kernels = [name for name, value in watch.items() if value.ndim > 1]
    for name in kernels:
        part = cloud[name][: watch[name].shape[0], : watch[name].shape[1]]
        assert torch.equal(part, watch[name])
        assert not torch.equal(part, control[name])
    # The stem sees the same pictures at every width; what comes after it does not.
    for key in ("running_mean", "running_var", "weight", "bias"):
        assert not torch.equal(cloud[f"body.0.0.second.1.{key}"][:8], watch[f"body.0.0.second.1.{key}"])


def test_the_compatible_models_have_one_head_and_the_control_its_own(sfsc: TrainedRun) -> None:
    heads = {name: safetensors.torch.load_file(sfsc.path / "heads" / f"{name}.safetensors")["weight"] for name in sfsc.records}
    assert torch.equal(heads["phone"], heads["cloud"])
    assert torch.equal(heads["watch"], heads["cloud"])
    assert not torch.equal(heads["control"], heads["cloud"])


@pytest.mark.parametrize("joint", [SFSC, {"project_conflicts": True}, {}])
def test_a_family_that_was_interrupted_ends_where_it_would_have_ended(
    joint: dict[str, Any], tmp_path: Path, family_content: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate(family_content(joint=joint, steps=8))
    whole = train(recipe, tmp_path / "whole")
    assert whole is not None
    saves: list[int] = []
    save = RunDirectory.save

    def killed(self: RunDirectory, data: bytes) -> None:
        save(self, data)
        saves.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts")
    monkeypatch.undo()
    resumed = train(recipe, tmp_path / "parts")
    assert saves == [1]
    assert resumed is not None
    for name in recipe.models:
        for key, value in weights(whole, name).items():
            assert torch.equal(weights(resumed, name)[key], value), (name, key)


def test_edges_share_a_network_beside_a_frozen_cloud(tmp_path: Path, family_content: Make) -> None:
    content = family_content("phone", mode="sequential", steps=4, joint={"project_conflicts": True})
    run = train(Recipe.model_validate(content), tmp_path / "run")
    assert run is not None
    phone, watch, cloud = (weights(run, name) for name in ("phone", "watch", "cloud"))
    name = "body.0.0.second.0.weight"
    assert torch.equal(phone[name][:8, :8], watch[name])
    assert not torch.equal(cloud[name][:8, :8], watch[name])


def test_the_step_is_the_gradient_of_all_objectives(family_content: Make) -> None:
    """Without weights and projection: the sum's gradient in the shared network and head, each tier's own elsewhere."""
    recipe, tiers = build(family_content(joint={"shared_head": True}))
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    (stage,) = stages_of(recipe)
    family = family_of(recipe, stage, tiers, World(torch.device("cpu")))
    assert family is not None
    learning = [value for tier in tiers.values() for value in tier.parameters()]
    assert len({id(value) for value in learning}) == len(learning)  # each has one owner
    assert {id(value) for value in learning} == {id(value) for value in (*family.shared, *family.private)}

    def totals() -> list[tuple[str, torch.Tensor]]:
        found, partner = [], Partner({})
        for name, tier in tiers.items():
            outcome = tier.train()(images, labels, partner)
            if name == recipe.cloud:
                partner = partner_of(tier, outcome.observed)
            found.append((name, outcome.total))
        return found

    together = family.begin(0)
    for name, total in totals():
        together.backward(family.objective(name, total))
    together.finish()
    expected = torch.autograd.grad(torch.stack([total for _, total in totals()]).sum(), learning, allow_unused=True)
    for value, gradient in zip(learning, expected, strict=True):
        torch.testing.assert_close(value.grad, gradient)


def test_a_shared_network_starts_as_its_widest_model_would_alone(family_content: Make) -> None:
    content = family_content("phone")
    recipe, tiers = build(content)
    alone = build_tier(recipe, "phone", classes=3).model
    network = tiers["phone"].model
    assert isinstance(network, SlimmableResidual)
    assert network.widths == (4, 6)
    separate(tiers)
    for name, value in alone.state_dict().items():
        assert torch.equal(tiers["phone"].model.state_dict()[name], value)
    assert all(isinstance(tier.model, StagedNet) for tier in tiers.values())


def test_models_that_share_nothing_are_left_alone(recipe_content: Make) -> None:
    recipe, tiers = build(recipe_content())
    assert all(isinstance(tier.model, StagedNet) for tier in tiers.values())
    assert [family_of(recipe, stage, tiers, World(torch.device("cpu"))) for stage in stages_of(recipe)] == [None]


def test_uncertainty_alone_shares_nothing_and_is_learnt(tmp_path: Path, recipe_content: Make) -> None:
    recipe, tiers = build(recipe_content(joint={"weights": "uncertainty"}))
    family = family_of(recipe, stages_of(recipe)[0], tiers, World(torch.device("cpu")))
    assert family is not None
    assert family.shared == []
    assert family.weights is not None
    objective = family.objective("phone", torch.tensor(3.0))
    assert objective.item() == pytest.approx(3.0)
    objective.backward()
    assert family.weights.log_variance.grad is not None
    assert family.weights.log_variance.grad.abs().sum() > 0


def test_a_narrower_model_classifies_by_the_first_coordinates_of_the_shared_head(family_content: Make) -> None:
    content = family_content("phone", joint={"shared_head": True})
    for name in ("phone", "watch"):
        content["models"][name] = {**content["models"][name], "dim": 4}
    _, tiers = build(content)
    loss, owner = tiers["watch"].terms["cosine_softmax"], tiers["cloud"].terms["cosine_softmax"]
    assert isinstance(loss, SharedSoftmax)
    assert isinstance(owner, CosineSoftmax)
    head = loss.head()
    torch.testing.assert_close(head, nn.functional.normalize(owner.weight[:, :4], dim=1))
    head.sum().backward()
    assert owner.weight.grad is not None
    assert owner.weight.grad[:, :4].abs().sum() > 0
    assert list(loss.parameters()) == []


def test_the_log_and_the_recipe_of_a_family_can_be_read(sfsc: TrainedRun, family_content: Make) -> None:
    there = load_recipe(sfsc.path / "recipe.toml", "full")
    assert there.digest == Recipe.model_validate(family_content(joint=SFSC)).digest
    last = list(read_log(sfsc.path / "log.jsonl"))[-1]
    assert set(json.loads(json.dumps(last))["losses"]) == {"cloud", "phone", "watch", "control"}
    assert np.isfinite(last["losses"]["watch"]["total"])


def changed(model: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["models"][model] = {**content["models"][model], **values}

    return change


def top(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(values)


WIDE = {"width": 8, "stages": 1, "pooling": "map"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("watch", shares="tablet"), "no other model"),
        (changed("watch", shares="watch"), "no other model"),
        (changed("watch", shares="phone"), "itself shares 'cloud'"),
        (changed("cloud", shares="control"), "founds the space"),
        (changed("watch", arguments=WIDE), "must be less than the 8"),
        (changed("watch", arguments={**WIDE, "width": 6}), "another width"),
        (changed("watch", arguments={**WIDE, "width": 4, "depth": 2}), "arguments.depth must be that of 'cloud'"),
        (changed("watch", family="mixer", arguments={}), "only the family 'residual'"),
        (changed("watch", dim=4), "its dim must be that"),
        (changed("watch", preprocess={"size": 8}), "its preprocess must be that"),
        (changed("control", shares="cloud"), "its compatible must be that"),
        (changed("watch", learning_rate=0.1), "leave out learning_rate"),
        (top(mode="sequential"), "set mode = 'joint'"),
        (top(joint={"project_conflict": True}), "project_conflict"),
        (top(joint={"shared_head": True}, losses={"regression": {}}), "needs cosine_softmax"),
    ],
)
def test_a_family_that_cannot_be_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, family_content: Make
) -> None:
    content = family_content()
    change(content)
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joint": {"project_conflicts": True}}, "no two models share"),
        ({"joint": {"shared_head": True}, "mode": "sequential"}, "shared_head is for models that learn in one loop"),
        ({"joint": {"weights": "uncertainty"}, "mode": "sequential"}, "weights is for models that learn in one loop"),
    ],
)
def test_a_table_that_would_do_nothing_is_refused(changes: dict[str, Any], message: str, recipe_content: Make) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(recipe_content(**changes))
