"""Recipes are read strictly: a wrong one is refused with the key and the mend, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samespace.cloud.recipe import Recipe, load_recipe
from samespace.cloud.toml import to_toml
from samespace.sdk.errors import ConfigError

Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _no_size_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAMESPACE_SIZE", raising=False)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(content: dict[str, Any]) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(to_toml(content))
        return path

    return write


def refused(path: Path, size: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, size)
    return str(caught.value)


def test_written_and_read_again_it_is_the_same(write: Callable[..., Path], recipe_content: Make, tmp_path: Path) -> None:
    recipe = load_recipe(write(recipe_content(losses={"regression": {"weight": 2.5}, "partner_head": {"scale": 8.0}})))
    again = tmp_path / "again.toml"
    again.write_text(recipe.to_toml())
    assert load_recipe(again) == recipe
    assert load_recipe(again).digest == recipe.digest


@pytest.mark.parametrize(
    ("place", "wrong", "meant"),
    [
        ((), "stpes", "steps"),
        (("models", "phone"), "famly", "family"),
        (("models", "phone", "preprocess"), "sizes", "size"),
        (("optimiser",), "learning_rat", "learning_rate"),
        (("softmax",), "scael", "scale"),
        (("data",), "rot", "root"),
    ],
)
def test_misspelt_key_names_what_was_meant(
    write: Callable[..., Path], recipe_content: Make, place: tuple[str, ...], wrong: str, meant: str
) -> None:
    content = recipe_content(optimiser={}, softmax={})
    table = content
    for part in place:
        table = table[part]
    table[wrong] = 1
    message = refused(write(content))
    assert "recipe.toml" in message
    assert f"{'.'.join((*place, wrong))}: unknown key (did you mean {meant!r}?)" in message


def test_misspelt_loss_and_loss_option(write: Callable[..., Path], recipe_content: Make) -> None:
    assert "did you mean 'regression'?" in refused(write(recipe_content(losses={"regresion": {}})))
    assert "did you mean 'margin'?" in refused(write(recipe_content(losses={"partner_head": {"margn": 0.1}})))


def test_an_edge_model_wider_than_its_cloud_is_refused_with_both_named(
    write: Callable[..., Path], recipe_content: Make
) -> None:
    content = recipe_content()
    content["models"]["phone"]["dim"] = 12
    message = refused(write(content))
    assert "models.phone: dim = 12, but the cloud model 'cloud' has dim = 8" in message
    assert "set dim <= 8" in message


def test_exactly_one_cloud_model(write: Callable[..., Path], recipe_content: Make) -> None:
    content = recipe_content()
    content["models"]["phone"]["role"] = "cloud"
    assert "exactly one must have role = 'cloud'" in refused(write(content))
    del content["models"]["phone"], content["models"]["cloud"]
    assert "got none" in refused(write(content))


def test_compatible_edges_need_a_loss_that_involves_the_cloud(write: Callable[..., Path], recipe_content: Make) -> None:
    assert "none of its losses involves the cloud model" in refused(write(recipe_content(losses={"cosine_softmax": {}})))


def test_models_must_see_the_same_picture(write: Callable[..., Path], recipe_content: Make) -> None:
    content = recipe_content()
    content["models"]["phone"]["preprocess"] = {"size": 16, "fit": "stretch"}
    assert "models.phone: preprocess.fit differs" in refused(write(content))
    content["models"]["phone"]["preprocess"] = {"size": 32}
    assert "raise data.source_size" in refused(write(content))


def test_dim_and_image_size_are_set_in_one_place(write: Callable[..., Path], recipe_content: Make) -> None:
    content = recipe_content()
    content["models"]["phone"]["arguments"]["image_size"] = 16
    assert "image_size is set by the model's own preprocess.size" in refused(write(content))


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 1}, {"mode": "both"}, {"seed": -1}, {"name": "No Name"}])
def test_values_out_of_range_name_the_key(write: Callable[..., Path], recipe_content: Make, change: dict[str, Any]) -> None:
    assert f"{next(iter(change))}: " in refused(write(recipe_content(**change)))


def test_missing_file_and_broken_toml(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("steps = = 3")
    assert "not valid TOML" in refused(tmp_path / "broken.toml")
    (tmp_path / "empty.toml").write_text("")
    assert "steps: missing" in refused(tmp_path / "empty.toml")


def test_size_overrides_some_keys_and_keeps_the_rest(
    write: Callable[..., Path], recipe_content: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(recipe_content(sizes={"ci": {"steps": 3, "models": {"cloud": {"arguments": {"width": 4}}}}}))
    full, small = load_recipe(path), load_recipe(path, "ci")
    assert (full.steps, small.steps) == (12, 3)
    assert small.models["cloud"].arguments == {"width": 4, "stages": 1, "pooling": "map"}
    assert small.models["phone"] == full.models["phone"]
    monkeypatch.setenv("SAMESPACE_SIZE", "ci")
    assert load_recipe(path) == small
    assert load_recipe(path, "full") == full


def test_size_that_is_not_there_is_refused(write: Callable[..., Path], recipe_content: Make) -> None:
    message = refused(write(recipe_content(sizes={"ci": {"steps": 3}})), "small")
    assert "no size 'small'" in message
    assert "there is ci, full" in message


def test_typo_in_a_size_shows_even_when_another_is_used(write: Callable[..., Path], recipe_content: Make) -> None:
    message = refused(write(recipe_content(sizes={"ci": {"stesp": 3}})))
    assert "at size ci: stesp: unknown key (did you mean 'steps'?)" in message


def test_size_reaches_the_built_in_data(write: Callable[..., Path], recipe_content: Make) -> None:
    path = write(recipe_content(data={"kind": "emoji"}, sizes={"ci": {"steps": 3}}))
    assert load_recipe(path).data.model_dump()["size"] == "full"
    assert load_recipe(path, "ci").data.model_dump()["size"] == "ci"


def test_paths_are_relative_to_the_recipe(write: Callable[..., Path], recipe_content: Make, tmp_path: Path) -> None:
    recipe = load_recipe(write(recipe_content(data={"kind": "folder", "root": "photos", "source_size": 16})))
    assert recipe.data.model_dump()["root"] == tmp_path / "photos"


def test_losses_share_scale_and_margin_unless_they_say_otherwise(recipe_content: Make) -> None:
    recipe = Recipe.model_validate(
        recipe_content(
            softmax={"scale": 20.0, "margin": 0.1},
            losses={"cosine_softmax": {"weight": 0.5}, "partner_head": {"margin": 0.0}, "regression": {"weight": 5.0}},
        )
    )
    assert recipe.terms("phone") == {
        "cosine_softmax": (0.5, {"scale": 20.0, "margin": 0.1, "label_smoothing": 0.0}),
        "partner_head": (1.0, {"scale": 20.0, "margin": 0.0, "label_smoothing": 0.0}),
        "regression": (5.0, {}),
    }


def test_cloud_and_control_have_their_own_softmax_alone(recipe_content: Make) -> None:
    recipe = Recipe.model_validate(recipe_content())
    own = {"cosine_softmax": (1.0, {"scale": 16.0, "margin": 0.0, "label_smoothing": 0.0})}
    assert recipe.terms("cloud") == own
    assert recipe.terms("control") == own


def test_digest_depends_on_what_the_weights_depend_on(recipe_content: Make) -> None:
    recipe = Recipe.model_validate(recipe_content())
    assert Recipe.model_validate(recipe_content(checkpoint_every=7, log_every=3)).digest == recipe.digest
    for change in ({"seed": 1}, {"steps": 13}, {"losses": {"regression": {}}}):
        assert Recipe.model_validate(recipe_content(**change)).digest != recipe.digest


@pytest.mark.parametrize(("mode", "classifies"), [("joint", True), ("sequential", False)])
def test_by_default_only_models_of_one_loop_classify_for_themselves(mode: str, classifies: bool, recipe_content: Make) -> None:
    recipe = Recipe.model_validate(recipe_content(mode=mode))
    assert ("cosine_softmax" in recipe.terms("phone")) == classifies
    assert "regression" in recipe.terms("phone")
    assert set(recipe.terms("control")) == {"cosine_softmax"}
