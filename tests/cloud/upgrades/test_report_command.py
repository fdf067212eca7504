"""``samespace report`` over runs that were really trained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from typer.testing import CliRunner

from samespace.cloud.cli.report import app
from samespace.cloud.recipe import Recipe
from samespace.cloud.recipe.load import parse_recipe
from samespace.cloud.training import train
from samespace.cloud.upgrades import Bars, judge, read_report, report_of
from samespace.cloud.upgrades.page import page
from samespace.sdk.errors import ConfigError
from samespace.sdk.metrics import recall_at_k

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture
def chain(_folder: Path, recipe_content: Make) -> list[Path]:
    """Three generations: a run from nothing, and two upgrades."""
    paths = [_folder / name for name in ("first", "second", "third")]
    for number, path in enumerate(paths):
        content = recipe_content(name=path.name, mode="sequential")
        models = {"cloud": content["models"]["cloud"]}
        if number:
            models = {"old": {"role": "cloud", "run": str(paths[number - 1])}, **models}
        assert train(parse_recipe({**content, "models": models}, _folder / "recipe.toml"), path)
    return paths


@pytest.fixture
def control(_folder: Path, recipe_content: Make) -> Path:
    content = recipe_content(name="alone")
    train(Recipe.model_validate({**content, "models": {"cloud": content["models"]["cloud"]}}), _folder / "alone")
    return _folder / "alone"


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_three_generations_search_each_others_galleries(chain: list[Path], control: Path, tmp_path: Path) -> None:
    result = run(*chain, "--control", control, "--json", tmp_path / "up.json", "--html", tmp_path / "up.html", "--flips", 100)
    assert result.exit_code in (0, 1, 3), result.output
    assert "first-cloud" in result.output
    report = read_report((tmp_path / "up.json").read_bytes())
    assert [one.name for one in report.generations] == ["first-cloud", "second-cloud", "third-cloud"]
    assert len(report.matrix) == 9
    assert report.control is not None
    items = json.loads((chain[-1] / "items.json").read_bytes())["test"]
    labels = items["query"]["class"], items["gallery"]["class"]
    new, old = (safetensors.numpy.load_file(chain[-1] / f"embeddings/{name}.safetensors") for name in ("cloud", "old"))
    assert list(report.outcomes.new.recall1) == recall_at_k(new["query"], old["gallery"], *labels).tolist()
    # What the run itself measured is what the report says.
    cells = json.loads((chain[-1] / "matrices.json").read_bytes())
    measured = next(c for c in cells if (c["query"], c["gallery"], c["split"]) == ("cloud", "old", "test"))
    assert report.cell(2, 1).recall1.value == pytest.approx(measured["metrics"]["recall@1"]["value"])


def test_one_upgrade_is_enough(chain: list[Path]) -> None:
    report = report_of(chain[1:2])
    assert [one.name for one in report.generations] == ["first-cloud", "second-cloud"]
    assert "quality" in report.outcomes.queries


def test_the_exit_code_is_the_verdict(chain: list[Path], tmp_path: Path) -> None:
    saved = tmp_path / "up.json"
    first = run(chain[1], "--json", saved)
    lenient = ["--margin", 100, "--slice-drop", 100, "--slice-least", 2, "--flips", 100]
    passed = run("--report", saved, *lenient)
    assert passed.exit_code == 0
    assert "may go live" in passed.output
    outcome = json.loads(saved.read_text())["verdict"]["outcome"]
    assert first.exit_code == {"pass": 0, "fail": 1, "inconclusive": 3}[outcome]
    # One query that flipped, of a set that must not.
    report = read_report(saved.read_bytes())
    assert report.outcomes.queries["key"]
    flipped = judge(report).flips.queries
    if flipped:
        key = report.outcomes.queries["key"][flipped[0]]
        refused = run("--report", saved, *lenient, "--never", key)
        assert refused.exit_code == 1
        assert key in refused.output


def test_the_same_numbers_twice(chain: list[Path]) -> None:
    assert report_of(chain[1:2]) == report_of(chain[1:2])


def test_runs_in_another_order_are_refused(chain: list[Path]) -> None:
    for wrong in ([chain[1], chain[0], chain[2]], [chain[0], chain[2]]):
        with pytest.raises(ConfigError, match=r"which is not the model of .*oldest first"):
            report_of(wrong)
    with pytest.raises(ConfigError, match="upgrades nothing"):
        report_of([chain[0]])


def test_a_run_of_an_older_samespace_says_what_to_do(chain: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(chain[1], copy)
    (copy / "items.json").unlink()
    with pytest.raises(ConfigError, match=r"items\.json: cannot be read .* train it again"):
        report_of([copy])
    shutil.copy(chain[1] / "items.json", copy)
    data = (copy / "embeddings/cloud.safetensors").read_bytes()
    (copy / "embeddings/cloud.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"cloud\.safetensors: cannot be read"):
        report_of([copy])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cost", "digit-0"], "say NAME=COST"),
        (["--cost", "digit-0=-1"], "say NAME=COST"),
        (["--metric", "accuracy"], "bar metric"),
        (["--never", "toadstool"], "neither a class nor"),
    ],
)
def test_wrong_arguments_name_themselves(chain: list[Path], arguments: list[str], message: str) -> None:
    result = run(chain[1], *arguments)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_nothing_to_judge_is_wrong_usage() -> None:
    assert run().exit_code == 2


def test_the_page_shows_every_finding_and_escapes_what_it_was_given(chain: list[Path]) -> None:
    report = report_of(chain[1:2])
    queries = dict(report.outcomes.queries) | {"source": ("<script>alert(1)</script>",) * len(report.outcomes.old.recall1)}
    renamed = report.generations[0].model_copy(update={"name": "<b>old</b>"})
    report = report.model_copy(
        update={
            "outcomes": report.outcomes.model_copy(update={"queries": queries}),
            "generations": (renamed, *report.generations[1:]),
        }
    )
    verdict = judge(report, Bars())
    text = page(report, verdict)
    assert "<script" not in text
    assert "<b>old</b>" not in text
    for finding in verdict.findings:
        assert finding.check in text
    opened: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert tag in opened, f"</{tag}> closes nothing"
            opened.remove(tag)

    Balanced().feed(text)
    assert set(opened) <= {"html", "meta"}, opened
    assert not re.search(r'(src|href)="https?:', text)
    assert np.isfinite(verdict.difference.value)
