"""``samespace export``: what is chosen, what is said, and that the guide's commands run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from samespace.export import Run
from samespace.export.formats import EXPORTERS, exporter_class
from samespace.export.options import ExportOptions
from samespace.export.targets import DEFAULT_ARTIFACTS, TARGETS, choose_artifacts
from samespace.export.verify import judging_runtimes
from samespace.sdk.bundle import Bundle
from samespace.sdk.check import Gate, measure
from samespace.sdk.cli import main
from samespace.sdk.errors import ConfigError
from samespace.sdk.manifest import PRECISIONS, Artifact, TensorSpec
from samespace.sdk.runtimes import LoadedArtifact, available
from samespace.sdk.signing import SigningKey

pytestmark = pytest.mark.timeout(600)

GUIDE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


# -- what is chosen


def test_every_artifact_of_every_target_exists() -> None:
    for target, artifacts in {**TARGETS, "none": DEFAULT_ARTIFACTS}.items():
        assert artifacts
        for format, precision in artifacts:
            assert precision in exporter_class(format).precisions, f"{target}: {format}-{precision}"


def test_every_precision_has_a_gate_and_is_exported_by_some_format() -> None:
    exported = {precision for name in EXPORTERS for precision in exporter_class(name).precisions}
    assert exported == set(PRECISIONS)
    limits = [Gate.default(precision).worst_cosine for precision in PRECISIONS]
    assert limits == sorted(limits, reverse=True)
    assert Gate.default("int8").recall_margin == 0.01


def test_combinations_that_exist_are_chosen_each_once() -> None:
    choose = choose_artifacts
    assert choose() == DEFAULT_ARTIFACTS
    assert choose(["onnx-int8", "onnx"]) == (("onnx", "int8"), ("onnx", "fp32"))
    assert choose(formats=["coreml", "onnx"]) == (("coreml", "fp16"), ("onnx", "fp32"))
    both = choose(formats=["onnx", "coreml"], precisions=["int8", "palette6"])
    assert both == (("onnx", "int8"), ("coreml", "int8"), ("coreml", "palette6"))
    assert {format for format, _ in choose(precisions=["fp32"])} == {"onnx", "tflite", "coreml"}
    assert choose(targets=["ios"]) == TARGETS["ios"]
    assert set(choose(targets=["android", "linux-arm"])) == {*TARGETS["android"], *TARGETS["linux-arm"]}
    assert choose(targets=["android"], precisions=["int8"]) == (("tflite", "int8"), ("ort", "int8"))
    assert {format for format, _ in choose(targets=["android"], formats=["tflite"])} == {"tflite"}
    assert choose(["coreml-palette4"], targets=["web"]) == (("coreml", "palette4"), *TARGETS["web"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"targets": ["fridge"]}, "no export target is called 'fridge'; there are: android, ios, web, linux-arm"),
        ({"targets": ["web"], "formats": ["coreml"]}, "coreml is not for the target 'web', which takes: onnx-int8, onnx-fp32"),
        ({"formats": ["pt"]}, "no export format is called 'pt'; there are: onnx"),
        (
            {"formats": ["onnx", "tflite"], "precisions": ["palette6"]},
            "onnx and tflite are not exported as 'palette6'; there is",
        ),
        ({"formats": ["onnx", "coreml"], "precisions": ["palette6"]}, "onnx is not exported as palette6; there is: onnx-fp32"),
        ({"precisions": ["int3"]}, "onnx, tflite and coreml are not exported as 'int3'; there is: onnx-fp32"),
        ({"exact": ["onnx-palette4"]}, "onnx is not exported as 'palette4'"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_there_is(asked: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_artifacts(**asked)
    assert said in str(caught.value)


def test_an_old_interpreter_judges_only_what_it_is_to_run(any_tflite: LoadedArtifact) -> None:
    assert available("tflite_runtime")
    assert judging_runtimes(any_tflite, "2.14") == ("tflite", "tflite_runtime")
    assert judging_runtimes(any_tflite, "2.17") == ("tflite",)


@pytest.fixture
def any_tflite() -> LoadedArtifact:
    spec = Artifact(
        path="artifacts/model.int8.tflite",
        format="tflite",
        precision="int8",
        artifact_id="0" * 64,
        input=TensorSpec(name="image", dtype="uint8", dynamic_batch=True),
        output="embedding",
        recipe={},
        min_runtime="",
    )
    return LoadedArtifact(spec, {"": b""}, 24, 16)


@pytest.mark.parametrize(("wrong", "said"), [({"min_litert": "two"}, "min_litert = 'two'"), ({"min_ios": 9}, "min_ios = 9")])
def test_versions_that_are_none_are_refused_before_anything_is_converted(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ExportOptions(**wrong)


# -- what the command does


@pytest.fixture(scope="module")
def workplace(
    calibrated: Run, noise_pictures: Callable[[int, int], list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with ``runs/emoji``, whose one edge model ``phone`` survives int8, and ``photos/gallery``."""
    folder = tmp_path_factory.mktemp("workplace")
    models = Path(shutil.copytree(calibrated.path, folder / "runs" / "emoji")) / "models"
    for suffix in (".json", ".safetensors"):
        (models / f"planted{suffix}").unlink()
        (models / f"plain{suffix}").rename(models / f"phone{suffix}")
    for index, image in enumerate(noise_pictures(40, 9)):
        photo = folder / "photos" / "gallery" / f"class {index // 2}" / f"{index % 2}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(photo)
    return folder


@pytest.fixture
def at_work(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """There, with a key to sign with."""
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))
    SigningKey.new().save(tmp_path / "config" / "keys" / "default.pem")
    monkeypatch.chdir(workplace)
    return workplace


def run_command(words: list[str]) -> int:
    try:
        main(words)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 0
    return 0


@pytest.mark.export
def test_every_command_of_the_guide_runs(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line]
    assert len(commands) >= 4
    said = []
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "samespace"
        assert run_command(words) == 0, command + capsys.readouterr().err
        said.append(capsys.readouterr().out)
    by_command = dict(zip(commands, said, strict=True))
    (combined,) = (text for command, text in by_command.items() if "--formats" in command)
    for artifact in ("onnx-fp32", "ort-fp32", "ort-int8"):
        assert f" {artifact} " in combined
    (asked,) = (text for command, text in by_command.items() if "--sensitivity" in command)
    assert "What int8 costs in each layer of phone onnx-int8" in asked
    assert "stem.0" in asked
    (forced,) = (text for command, text in by_command.items() if "--force" in command)
    assert re.search(r"FAILED, .*phone coreml-palette4 .*below the limit 0.95 for palette4", forced)
    # The last command's bundle: what was forced is marked, keeps its gate, and a check fails it.
    bundle = Bundle.open(at_work / "phone.samespace", allow_unsigned=True)
    marks = {e["artifact"]: e["failed"] for e in json.loads(bundle.read("evidence.json")) if e.get("kind") == "export"}
    assert "below the limit" in marks["coreml-palette4"]
    assert bundle.manifest.gates == {"palette4": {"worst_cosine": 0.95}}
    report = measure(bundle, "coreml-palette4")
    assert Gate.of(report).judge(report).outcome == "fail"


def test_the_guide_shows_targets_and_gates_as_they_are() -> None:
    for target, artifacts in TARGETS.items():
        assert f"| `{target}` | {', '.join('-'.join(pair) for pair in artifacts)} |" in GUIDE
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in GUIDE.splitlines() if line.startswith("|")]
    limits = {precision: row[1:] for row in rows if len(row) == 4 for precision in row[0].split(", ")}
    for precision in PRECISIONS:
        gate = Gate.default(precision)
        points = f"{100 * gate.recall_margin:g} point" + ("" if gate.recall_margin == 0.01 else "s")
        assert limits[precision] == [f"{gate.worst_cosine:g}", f"{100 * gate.overlap:g} %", points]


@pytest.mark.export
def test_json_tells_all_that_was_measured(at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", "runs/emoji", "-o", str(tmp_path / "phone.samespace"), "--precisions", "int8", "--formats", "onnx"]
    assert run_command([*words, "--json", "--unsigned"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert {row["artifact"] for row in told["artifacts"]} == {"onnx-int8"}
    assert told["artifacts"][0]["overlap"] >= 0.75
    assert told["artifacts"][0]["saturation"]["here"] >= 0.98
    assert told["quantisation"]["onnx-int8"]["met"]
    assert told["quantisation"]["onnx-int8"]["float_layers"] == []
    bundle = Bundle.open(tmp_path / "phone.samespace", allow_unsigned=True)
    assert bundle.artifact("onnx-int8").spec.recipe["calibration"]["held_out"] == 48


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--target", "toaster"], "no export target is called 'toaster'"),
        (["--formats", "onnx", "--precisions", "palette4"], "onnx is not exported as 'palette4'"),
        (["--artifact", "onnx-int8", "--calibration", "nowhere"], "nowhere: no such folder of calibration pictures"),
        (["--artifact", "onnx-int8", "--calibration", "runs"], "that can calibrate int8"),
        (["--artifact", "tflite", "--min-litert", "new"], "min_litert = 'new'"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    more: list[str], said: str, at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["export", "runs/emoji", "-o", str(tmp_path / "phone.samespace"), *more]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "phone.samespace").exists()
