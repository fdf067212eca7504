"""A search file is read strictly, and what cannot work is refused before any work, with the mend."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samespace.cloud.search import Search, load_search, search
from samespace.cloud.search import pareto as pareto_module
from samespace.cloud.toml import to_toml
from samespace.sdk.cli import main
from samespace.sdk.errors import ConfigError, MissingExtraError

ROOT = Path(__file__).parents[3]
Make = Callable[..., Search]
Write = Callable[..., Path]


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_search(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("table", "wrong", "meant"),
    [
        (None, "reward", "rewards"),
        ("space", "kernel", "kernels"),
        ("supernet", "step", "steps"),
        ("evolution", "populaton", "population"),
        ("budget", "mac", "macs"),
        ("finalists", "seed", "seeds"),
    ],
)
def test_misspelt_key_names_what_was_meant(write: Write, table: str | None, wrong: str, meant: str) -> None:
    message = refused(write(**({table: {wrong: 1}} if table else {wrong: 1})))
    assert f"{table + '.' if table else ''}{wrong}: unknown key (did you mean {meant!r}?)" in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rewards": ["R5"]}, "rewards.0"),
        ({"rewards": ["R1", "R1"]}, "rewards: names a reward twice"),
        ({"budget": {"macs": 0}}, "budget.macs"),
        ({"evolution": {"population": 4, "parents": 9}}, "parents = 9 is more than population = 4"),
        ({"finalists": {"seeds": [1, 1]}}, "finalists.seeds"),
        ({"supernet": {"losses": {"regresion": {}}}}, "did you mean 'regression'?"),
        ({"space": {"dim": 64}}, "space.dim = 64 is more than the partner's 8"),
        ({"space": {"image_size": 7}}, "image_size"),
    ],
)
def test_wrong_values_name_their_key(write: Write, changes: dict[str, Any], says: str) -> None:
    assert says in refused(write(**changes))


def test_a_search_needs_a_budget_and_a_finished_run(write: Write, partner: Path, tmp_path: Path) -> None:
    content = tomllib.loads(write().read_text())
    path = tmp_path / "other.toml"
    path.write_text(to_toml({key: value for key, value in content.items() if key != "budget"}))
    assert "budget: missing" in refused(path)
    path.write_text(to_toml({key: value for key, value in content.items() if key != "run"}))
    assert "run: must name the folder of a finished run" in refused(path)
    path.write_text(to_toml({**content, "run": "nowhere"}))
    assert "run: " in (message := refused(path))
    assert "nowhere" in message
    unfinished = tmp_path / "unfinished"
    shutil.copytree(partner, unfinished)
    (unfinished / "matrices.json").unlink()
    path.write_text(to_toml({**content, "run": "unfinished"}))
    assert "unfinished" in refused(path)


def test_sizes_are_merged_over_the_rest_and_all_are_read(write: Write) -> None:
    path = write(sizes={"ci": {"evolution": {"generations": 1}}})
    assert load_search(path).evolution.generations == 2
    assert load_search(path, "ci").evolution.generations == 1
    assert load_search(path, "ci").evolution.population == 4
    with pytest.raises(ConfigError, match="no size 'huge'"):
        load_search(path, "huge")
    assert "at size ci" in refused(write(sizes={"ci": {"evolution": {"generation": 1}}}))


def test_dim_and_size_are_the_partners_unless_given(write: Write) -> None:
    assert load_search(write()).space.dim == 8
    assert load_search(write(space={"dim": 4})).space.dim == 4


def test_a_budget_that_nothing_meets_says_the_smallest_before_any_training(make: Make, tmp_path: Path) -> None:
    settings = make(budget={"macs": 10})
    with pytest.raises(ConfigError, match=r"budget\.macs = 10 \(smallest found: \d+\)") as caught:
        search(settings, tmp_path / "out")
    assert int(re.findall(r"found: (\d+)", str(caught.value))[0]) > 10
    assert not (tmp_path / "out" / "supernet").exists()


def test_a_run_without_validation_classes_is_refused(make: Make, partner: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(partner, run)
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace("validation_percent = 30", "validation_percent = 0"))
    with pytest.raises(ConfigError, match=r"no validation classes.*data\.validation_percent \(now 0\)"):
        search(make(run=str(run)), tmp_path / "out")


def test_losses_that_do_not_fit_are_refused_before_the_supernet(make: Make, tmp_path: Path) -> None:
    settings = make()
    alone = {"cosine_softmax": settings.finalists.losses["cosine_softmax"]}
    finalists = settings.finalists.model_copy(update={"losses": alone})
    with pytest.raises(ConfigError, match="would not join its space"):
        search(settings.model_copy(update={"finalists": finalists}), tmp_path / "out")
    assert not (tmp_path / "out" / "supernet").exists()


def test_a_missing_plotting_package_is_said_first(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = pareto_module.importlib.util.find_spec
    monkeypatch.setattr(pareto_module.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    with pytest.raises(MissingExtraError, match=r"samespace\[demo\]"):
        search(make(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_is_there_and_names_the_culprit(write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nas", str(write(budget={"mac": 1})), "-o", str(tmp_path / "out")])
    assert caught.value.code == 1
    assert "did you mean 'macs'?" in capsys.readouterr().err.replace("\n", " ")


def test_the_guides_search_is_a_search(partner: Path, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "search.md").read_text()
    found = re.findall(r"^```toml\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    assert found
    content = tomllib.loads(found[0])
    # The partner here takes smaller pictures than the guide's.
    (tmp_path / "search.toml").write_text(found[0].replace("[space]", "[space]\nimage_size = 32\n#", 1))
    shutil.copytree(partner, tmp_path / content["run"])
    for size in ("full", *content.get("sizes", {})):
        assert load_search(tmp_path / "search.toml", size).budget.macs > 0


def test_the_help_runs_without_torch() -> None:
    script = "import sys, samespace.cloud.cli.nas; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
