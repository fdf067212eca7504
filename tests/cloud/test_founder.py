"""Edge models trained into the space of a run that is finished; narrower ones; prefixes; paired starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F

from samespace.cloud.losses import Need, Partner
from samespace.cloud.recipe import Recipe, load_recipe
from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.training import TrainedRun, train
from samespace.cloud.training.partners import partner_of, read_founder, supply_gallery
from samespace.cloud.training.tier import build_tier
from samespace.sdk.errors import ConfigError, IntegrityError

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def founding(_folder: Path, recipe_content: Make) -> TrainedRun:
    """A finished run of a cloud model alone."""
    content = recipe_content(name="founding", mode="sequential")
    return _train(Recipe.model_validate({**content, "models": {"cloud": content["models"]["cloud"]}}), _folder / "founding")


@pytest.fixture
def joining(founding: TrainedRun, recipe_content: Make) -> Make:
    """A recipe's content whose cloud model is that of the finished run."""

    def make(**changes: Any) -> dict[str, Any]:
        content = recipe_content(name="joining", mode="sequential", **changes)
        content["models"]["cloud"] = {"role": "cloud", "run": str(founding.path)}
        return content

    return make


def _train(recipe: Recipe, folder: Path) -> TrainedRun:
    run = train(recipe, folder)
    assert run is not None
    return run


def _parse(content: dict[str, Any], folder: Path) -> Recipe:
    return parse_recipe(content, folder / "recipe.toml")


def test_edges_join_the_space_of_a_finished_run(founding: TrainedRun, joining: Make, tmp_path: Path) -> None:
    run = _train(_parse(joining(), tmp_path), tmp_path / "run")
    assert run.space == founding.space
    assert run.records["cloud"] == founding.records["cloud"]
    assert (run.path / "models/cloud.safetensors").read_bytes() == (founding.path / "models/cloud.safetensors").read_bytes()
    assert run.cell("cloud", "cloud").metrics == founding.cell("cloud", "cloud").metrics
    stages = {json.loads(line)["stage"] for line in (run.path / "log.jsonl").read_text().splitlines()}
    assert stages == {"edges"}, "the cloud model is not trained again"


def test_it_is_the_same_as_training_both_in_sequence(
    founding: TrainedRun, joining: Make, recipe_content: Make, tmp_path: Path
) -> None:
    """What the edges learn does not depend on whether the cloud model was trained in this run or in an earlier one."""
    apart = _train(_parse(joining(), tmp_path), tmp_path / "apart")
    together = _train(Recipe.model_validate(recipe_content(mode="sequential")), tmp_path / "together")
    assert together.records["cloud"].weights_sha256 == founding.records["cloud"].weights_sha256
    one, other = (safetensors.numpy.load((run.path / "models/phone.safetensors").read_bytes()) for run in (apart, together))
    # The head is stored as unit rows, so the last bit of it may differ.
    assert all(np.allclose(one[key], other[key], atol=1e-4) for key in one)


def test_the_recipe_in_its_run_reads_back(joining: Make, tmp_path: Path) -> None:
    recipe = _parse(joining(), tmp_path)
    run = _train(recipe, tmp_path / "run")
    assert load_recipe(run.path / "recipe.toml", "full").digest == recipe.digest


def test_a_founder_that_changed_is_refused(founding: TrainedRun, joining: Make, tmp_path: Path) -> None:
    recipe = _parse(joining(), tmp_path)
    cloud = recipe.models["cloud"].model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(IntegrityError, match="not the one that this run was started with"):
        read_founder(recipe.model_copy(update={"models": {**recipe.models, "cloud": cloud}}))


def test_a_founder_of_other_classes_is_refused(founding: TrainedRun, joining: Make, tmp_path: Path) -> None:
    content = joining()
    content["data"]["train_percent"] = 40
    with pytest.raises(ConfigError, match="learnt other classes"):
        train(_parse(content, tmp_path), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "nowhere"}, "no such run directory"),
        ({"dim": 16}, "models.cloud.dim is not that of the run"),
        ({"arguments": {"width": 99}}, "models.cloud.arguments is not that of the run"),
        ({"losses": {"cosine_softmax": {}}}, "leave out losses and start_as"),
    ],
)
def test_what_contradicts_the_founder_is_refused(joining: Make, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = joining()
    content["models"]["cloud"] |= change
    with pytest.raises(ConfigError, match=message):
        _parse(content, tmp_path)


def test_a_founder_stands_still(joining: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set mode = 'sequential'"):
        _parse({**joining(), "mode": "joint"}, tmp_path)


def test_a_narrower_edge_model_is_compared_on_the_first_coordinates(joining: Make, tmp_path: Path) -> None:
    content = joining(prefixes=[2])
    content["models"]["phone"]["dim"] = 4
    run = _train(_parse(content, tmp_path), tmp_path / "run")
    assert run.records["phone"].dim == 4
    assert run.cell("phone", "cloud").metrics["recall@1"].n == run.cell("cloud", "cloud").metrics["recall@1"].n
    assert run.cell("phone", "cloud", prefix=2).metrics != run.cell("phone", "cloud").metrics


def test_a_narrow_model_is_taught_the_prefix_alone(recipe_content: Make) -> None:
    content = recipe_content(losses={"regression": {}})
    content["models"]["phone"]["dim"] = 4
    phone = build_tier(Recipe.model_validate(content), "phone", 6)
    images = torch.randn(5, 3, 16, 16)
    wide = F.normalize(torch.randn(5, 8), dim=1)
    outcome = phone(images, torch.zeros(5, dtype=torch.int64), Partner({Need.EMBEDDING: wide}))
    cut = wide[:, :4] / wide[:, :4].norm(dim=1, keepdim=True)
    assert torch.allclose(outcome.terms, (1 - (outcome.observed.embedding * cut).sum(1)).mean()[None], atol=1e-6)


def test_paired_models_start_alike(recipe_content: Make) -> None:
    content = recipe_content()
    content["models"]["control"]["start_as"] = "phone"
    recipe = Recipe.model_validate(content)
    phone, control = (build_tier(recipe, name, 6).model.state_dict() for name in ("phone", "control"))
    assert all(torch.equal(phone[key], control[key]) for key in phone)
    content["models"]["control"]["start_as"] = "nobody"
    with pytest.raises(ValueError, match="is no model of this recipe"):
        Recipe.model_validate(content)


def test_a_model_may_have_its_own_objective(recipe_content: Make) -> None:
    content = recipe_content()
    content["models"]["phone"]["losses"] = {"regression": {"weight": 2.0}}
    recipe = Recipe.model_validate(content)
    assert recipe.terms("phone") == {"regression": (2.0, {})}
    assert build_tier(recipe, "phone", 6).needs == {Need.EMBEDDING}


def test_a_control_with_a_compatible_loss_is_refused(recipe_content: Make) -> None:
    content = recipe_content()
    content["models"]["control"]["losses"] = {"regression": {}}
    with pytest.raises(ValueError, match="would make it compatible"):
        Recipe.model_validate(content)


def test_what_each_query_found_adds_up_to_the_matrix(joining: Make, tmp_path: Path) -> None:
    run = _train(_parse(joining(), tmp_path), tmp_path / "run")
    found = safetensors.numpy.load((run.path / "queries.safetensors").read_bytes())
    for cell in run.matrix:
        key = f"{cell.split}/{cell.query}" + (f"+{cell.adapter}" if cell.adapter else "") + f"->{cell.gallery}"
        assert np.mean(found[key]) == pytest.approx(cell.metrics["recall@1"].value)
        assert np.mean(found[f"{key}/ap"], dtype=np.float64) == pytest.approx(cell.metrics["map"].value, rel=1e-6)


def test_the_gallery_that_losses_see_is_the_partners_own_view(joining: Make, tmp_path: Path) -> None:
    from samespace.cloud.training.data import load_training_data

    recipe = _parse(joining(), tmp_path)
    data = load_training_data(recipe)
    cloud = build_tier(recipe, "cloud", len(data.classes)).eval()
    gallery = supply_gallery(cloud, recipe, data)
    assert gallery.embedding.shape == (len(data.labels), 8)
    assert gallery.labels.tolist() == data.labels.tolist()
    partner = partner_of(cloud, cloud.observe(torch.zeros(2, 3, 16, 16)), gallery)
    assert partner.only(frozenset({Need.GALLERY})).gallery is gallery
