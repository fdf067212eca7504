"""A cloud model that is trained into the space of the one before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from typer.testing import CliRunner

from samespace.cloud.cli.train import app
from samespace.cloud.evaluation import embed
from samespace.cloud.inputs import Views
from samespace.cloud.losses import Batch, CompatibilityLoss, Partner
from samespace.cloud.recipe import Recipe, load_recipe
from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.recipe.parts import FlipSpec
from samespace.cloud.toml import to_toml
from samespace.cloud.training import TrainedRun, train
from samespace.cloud.training.data import load_training_data
from samespace.cloud.training.partners import partner_of, read_founder, read_head, take_over
from samespace.cloud.training.teachers import mean_logits, read_teachers
from samespace.cloud.training.tier import Tier, build_tier
from samespace.export.run import read_run
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import canonical_json, digest

#: Keys that a recipe's digest leaves out: where it runs, and what came with upgrades.
YOUNG = ("device", "checkpoint_every", "log_every", "teachers", "flips", "labels", "quantise", "run", "start_from")

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def _train(recipe: Recipe, folder: Path) -> TrainedRun:
    run = train(recipe, folder)
    assert run is not None
    return run


@pytest.fixture
def old(_folder: Path, recipe_content: Make) -> TrainedRun:
    """The run of the model that serves, which learnt fewer classes."""
    content = recipe_content(name="first", mode="sequential")
    content["data"]["train_percent"] = 40
    return _train(Recipe.model_validate({**content, "models": {"cloud": content["models"]["cloud"]}}), _folder / "old")


@pytest.fixture
def upgrade(old: TrainedRun, recipe_content: Make) -> Make:
    """Content of a recipe that upgrades it, with one edge model."""

    def make(**changes: Any) -> dict[str, Any]:
        content = recipe_content(name="second", mode="sequential", **changes)
        models = {"old": {"role": "cloud", "run": str(old.path)}, **content["models"]}
        return {**content, "models": {name: models[name] for name in ("old", "cloud", "phone")}}

    return make


def _parse(content: dict[str, Any], folder: Path) -> Recipe:
    return parse_recipe(content, folder / "recipe.toml")


def test_the_command_trains_into_the_old_space(old: TrainedRun, recipe_content: Make, tmp_path: Path) -> None:
    """One option more on the recipe that trains from nothing; what comes of it says what it upgrades."""
    content = recipe_content(name="second")
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(content))
    command = [str(file), "-o", str(tmp_path / "run"), "--upgrade-from", str(old.path), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    run = read_run(tmp_path / "run")
    assert run.space == old.space
    assert run.models["old"].record == old.records["cloud"]
    assert run.models["cloud"].record.role == "cloud"
    cells = {(cell["query"], cell["gallery"]) for cell in run.matrices if cell["split"] == "test" and not cell["adapter"]}
    assert {("old", "old"), ("cloud", "old"), ("cloud", "cloud"), ("old", "cloud"), ("phone", "cloud")} <= cells
    stages = [json.loads(line)["stage"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(stages)) == ["cloud", "edges"]
    again = load_recipe(tmp_path / "run/recipe.toml", "full")
    assert again.successor == "cloud", "the folder's own recipe says all of it"
    items = json.loads((tmp_path / "run/items.json").read_text())["test"]
    count = next(cell["metrics"]["recall@1"]["n"] for cell in run.matrices if cell["split"] == "test")
    assert {len(values) for values in items["query"].values()} == {count}
    for name in ("old", "cloud", "phone"):
        rows = safetensors.numpy.load_file(tmp_path / f"run/embeddings/{name}.safetensors")
        assert {side: len(embeddings) for side, embeddings in rows.items()} == {
            side: len(items[side]["key"]) for side in ("query", "gallery")
        }


def test_by_default_it_is_backward_compatible_training(upgrade: Make, tmp_path: Path) -> None:
    recipe = _parse(upgrade(), tmp_path)
    assert set(recipe.terms("cloud")) == {"cosine_softmax", "partner_head"}
    assert recipe.partner("cloud") == "old"
    assert recipe.partner("phone") == "cloud"
    assert recipe.partner("old") is None


def test_classes_that_the_old_model_did_not_learn_get_its_mean_embedding(
    upgrade: Make, old: TrainedRun, tmp_path: Path
) -> None:
    recipe = _parse(upgrade(), tmp_path)
    data, founder = load_training_data(recipe), read_founder(recipe)
    assert founder is not None
    tier = build_tier(recipe, "old", len(data.classes))
    take_over(tier, founder, recipe, data)
    head = tier.head()
    assert head is not None
    new = [label for label in data.classes if label not in founder.classes]
    assert new, "the data has classes that are new"
    assert set(founder.classes) <= set(data.classes)
    preprocess = recipe.models["old"].preprocess
    for row, label in enumerate(data.classes):
        if label in founder.classes:
            expected = founder.head[founder.classes.index(label)].numpy()
        else:
            members = [index for index in data.split.train if data.images.items[index].label == label]
            expected = embed(tier.model, data.prepared(members, preprocess), preprocess).mean(0)
            expected /= np.linalg.norm(expected)
        np.testing.assert_allclose(head[row].detach().numpy(), expected, atol=1e-5)
    supplied = partner_of(tier, tier.observe(torch.zeros(2, 3, preprocess.size, preprocess.size)))
    assert supplied.known.tolist() == [label in founder.classes for label in data.classes]


def test_renamed_classes_keep_their_prototypes(upgrade: Make, old: TrainedRun, tmp_path: Path) -> None:
    recipe = _parse(upgrade(), tmp_path)
    data, founder = load_training_data(recipe), read_founder(recipe)
    assert founder is not None
    known = founder.classes[0]
    new = next(label for label in data.classes if label not in founder.classes)
    content = upgrade()
    content["models"]["old"]["labels"] = {new: known}
    recipe = _parse(content, tmp_path)
    tier = build_tier(recipe, "old", len(data.classes))
    take_over(tier, founder, recipe, data)
    head = tier.head()
    assert head is not None
    assert torch.equal(head[data.classes.index(new)], head[data.classes.index(known)])
    content["models"]["old"]["labels"] = {new: "nobody"}
    with pytest.raises(ConfigError, match=r"labels: .* = 'nobody'"):
        take_over(tier, founder, _parse(content, tmp_path), data)


def test_more_dimensions_are_free(upgrade: Make, tmp_path: Path) -> None:
    """A wider successor is compared with the old gallery on the first coordinates; the others are its own."""
    content = upgrade(losses={"regression": {}})
    content["models"]["cloud"] |= {"dim": 12, "losses": {"cosine_softmax": {}, "regression": {}}}
    run = _train(_parse(content, tmp_path), tmp_path / "run")
    assert run.records["cloud"].dim == 12
    assert run.space.dim == 8
    n = run.cell("old", "old").metrics["map"].n
    assert run.cell("cloud", "old").metrics["map"].n == run.cell("cloud", "cloud").metrics["map"].n == n


@pytest.mark.parametrize(
    ("losses", "extra"),
    [
        ({"cosine_softmax": {}, "partner_head": {}, "focal_distillation": {}}, {}),
        ({"cosine_softmax": {}, "lce": {}, "ract": {}}, {}),
        ({"simplex": {"classes": 16}, "hoc": {"weight": 0.1}}, {}),
        ({"cosine_softmax": {}, "contrastive": {"weigh": "credibility"}}, {}),
        ({"cosine_softmax": {}, "regression": {}, "naive_reweighting": {}}, {"flips": {"costs": {"digit-0": 4.0}}}),
    ],
    ids=["pct", "lce+ract", "hoc", "nccl", "naive"],
)
def test_methods_are_combined_by_the_recipe(upgrade: Make, tmp_path: Path, losses: dict, extra: dict) -> None:
    content = upgrade(steps=2, **extra)
    del content["models"]["phone"]
    content["models"]["cloud"]["losses"] = losses
    if extra:
        content["flips"]["costs"] = {load_training_data(_parse(upgrade(), tmp_path)).classes[0]: 4.0}
    run = _train(_parse(content, tmp_path), tmp_path / "run")
    assert run.cell("cloud", "old").metrics["map"].n > 0


def test_what_a_flip_costs_reaches_the_losses(upgrade: Make, tmp_path: Path) -> None:
    data = load_training_data(_parse(upgrade(), tmp_path))
    label, key = data.classes[0], data.images.items[data.split.train[-1]].key
    costs = data.costs({label: 4.0, key: 9.0})
    assert costs is not None
    assert costs[-1] == 9
    assert set(costs[torch.from_numpy(data.labels) == 0].tolist()) <= {4.0, 9.0}
    assert set(costs[torch.from_numpy(data.labels) == 1].tolist()) <= {1.0, 9.0}
    assert data.costs({}) is None
    with pytest.raises(ConfigError, match=r"flips\.costs: 'digit-x' is neither"):
        data.costs({"digit-x": 2.0})
    seen = []

    class Spy(CompatibilityLoss):
        def forward(self, batch: Batch, partner: Partner) -> torch.Tensor:
            seen.append(batch.costs)
            return batch.embedding.sum()

    tier = build_tier(_parse(upgrade(), tmp_path), "cloud", len(data.classes))
    spied = Tier("cloud", tier.model, {"spy": Spy()}, {"spy": 1.0}, 8)
    spied(torch.randn(3, 3, 16, 16), torch.zeros(3, dtype=torch.int64), Partner({}), None, costs[:3])
    assert torch.equal(seen[0], costs[:3])


def test_an_ensemble_teaches(old: TrainedRun, recipe_content: Make, tmp_path: Path) -> None:
    """ELODI: the teachers' logits are the mean of what each gives by its own head, and a model alone learns from them."""
    content = recipe_content(name="student", teachers=[str(old.path)], steps=2)
    content["data"]["train_percent"] = 40
    content["models"] = {"cloud": content["models"]["cloud"] | {"losses": {"cosine_softmax": {}, "logit_difference": {}}}}
    recipe = _parse(content, tmp_path)
    run = _train(recipe, tmp_path / "run")
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["losses"]["cloud"]["logit_difference"] > 0
    teachers = read_teachers([old.path, run.path], read_head(old.path, "cloud")[1], torch.device("cpu"))
    views = Views(torch.rand(3, 16, 16, 3))
    both, one, two = (mean_logits(part, views) for part in (teachers, teachers[:1], teachers[1:]))
    torch.testing.assert_close(both, (one + two) / 2)
    with pytest.raises(ConfigError, match="learnt other classes"):
        read_teachers([old.path], ("a", "b"), torch.device("cpu"))


def test_teachers_are_asked_for(recipe_content: Make) -> None:
    content = recipe_content()
    content["models"]["cloud"]["losses"] = {"cosine_softmax": {}, "logit_difference": {}}
    with pytest.raises(ValueError, match=r"needs teachers = \[\.\.\.\]"):
        Recipe.model_validate(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"losses": {"cosine_softmax": {}}}, "would not join its space"),
        ({"losses": {"cosine_softmax": {}, "focal_distillation": {}}}, "would not join its space"),
        ({"compatible": False}, "a control of a successor is one, too"),
    ],
)
def test_a_successor_that_would_not_join_is_refused(upgrade: Make, tmp_path: Path, change: dict, message: str) -> None:
    content = upgrade()
    content["models"]["cloud"] |= change
    with pytest.raises(ConfigError, match=message):
        _parse(content, tmp_path)


def test_two_models_to_train_are_refused(recipe_content: Make) -> None:
    content = recipe_content()
    content["models"]["other"] = content["models"]["cloud"]
    with pytest.raises(ValueError, match="that of a finished run"):
        Recipe.model_validate(content)


def test_a_recipe_without_an_upgrade_keeps_its_digest(recipe_content: Make, tmp_path: Path) -> None:
    """Runs that were begun before there were upgrades go on: what is not used is no part of what they are known by."""
    recipe = Recipe.model_validate(recipe_content())
    before = {key: value for key, value in recipe.resolved().items() if key not in YOUNG}
    before["models"] = {
        name: {key: value for key, value in model.items() if key not in YOUNG} for name, model in before["models"].items()
    }
    assert recipe.digest == digest(canonical_json(before))
    used = {"teachers": (tmp_path,), "flips": FlipSpec(costs={"a": 2.0})}
    assert len({recipe.digest, *(recipe.model_copy(update={key: value}).digest for key, value in used.items())}) == 3
