"""ExecuTorch, in an environment of its own: the child process that it lives in, and, where there is one, its programs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from samespace.edge.models.registry import build_model
from samespace.export.conversion import Job, convert
from samespace.export.formats import Conversion, exporter_class
from samespace.export.formats.base import Precision, artifact_of
from samespace.export.graph import DeviceGraph
from samespace.export.options import ExportOptions
from samespace.export.run import RunModel
from samespace.sdk.bundle import artifact_id
from samespace.sdk.errors import ConfigError, ExportError, RuntimeFailure
from samespace.sdk.identity import ModelRecord, digest
from samespace.sdk.metrics import cosine
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.runtimes.child import ChildFailed, ChildRefused, OtherPython, ServingChild
from samespace.sdk.runtimes.executorch import EXECUTORCH
from samespace.sdk.runtimes.registry import open_runtime, why_unavailable

#: A conversion takes half a minute, several where the machine is busy.
pytestmark = pytest.mark.timeout(900)

HERE = OtherPython("SAMESPACE_TEST_PYTHON", ("numpy",), "the test", "python -m venv DIR")
SIZE, DIM = 24, 8

#: What a child does with a question; ``serve`` is that of ``child_frames``.
CHILD = """
import os, runpy, sys, time

def answer(question, parts):
    do = question["do"]
    if do == "reverse":
        print("chatter on standard output")
        return {"seen": question["text"], "isolated": sys.flags.isolated}, [part[::-1] for part in parts]
    if do == "refuse":
        raise ValueError("cannot \\x1b[31m do \\n this")
    if do == "crash":
        os.abort()
    if do == "hang":
        time.sleep(600)
    if do == "flood":
        return {}, [bytes(1000)]
    return {"error": question["do"]}, []

runpy.run_path(sys.argv[1])["serve"](answer)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServingChild]:
    """A child in this Python."""
    monkeypatch.setenv(HERE.variable, sys.executable)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    one = ServingChild(HERE.command(script))
    yield one
    one.close()


def _gone(one: ServingChild) -> bool:
    return one._child._process.poll() is not None


def test_a_child_answers_question_after_question(child: ServingChild) -> None:
    for text in ("one", "two"):
        answer, parts = child.ask({"do": "reverse", "text": text}, [b"abc", b"", bytes(100_000)], seconds=60)
        assert (answer["seen"], parts) == (text, [b"cba", b"", bytes(100_000)])
        assert answer["isolated"] == 1, "it sees neither our paths nor the user's packages"


def test_a_refusal_is_told_and_the_child_goes_on(child: ServingChild) -> None:
    with pytest.raises(ChildRefused, match=r"^cannot  \[31m do this$"):
        child.ask({"do": "refuse"}, seconds=60)
    assert child.ask({"do": "reverse", "text": ""}, [b"ab"], seconds=60)[1] == [b"ba"]


@pytest.mark.parametrize(
    ("question", "seconds", "most", "message"),
    [
        ({"do": "crash"}, 60.0, 100, "it crashed"),
        ({"do": "hang"}, 1.0, 100, "no answer within 1 s"),
        ({"do": "flood"}, 60.0, 100, "too long"),
    ],
)
def test_a_child_that_fails_is_ended(
    child: ServingChild, question: dict[str, str], seconds: float, most: int, message: str
) -> None:
    child.ask({"do": "reverse", "text": ""}, seconds=60)
    began = time.monotonic()
    with pytest.raises(ChildFailed, match=message):
        child.ask(question, seconds=seconds, most=most)
    assert time.monotonic() - began < 30
    assert _gone(child)
    with pytest.raises(ChildFailed, match="has ended"):
        child.ask({"do": "reverse", "text": ""}, seconds=60)


def test_no_process_is_left_behind(child: ServingChild) -> None:
    child.ask({"do": "reverse", "text": ""}, seconds=60)
    process = child._child._process
    assert process.poll() is None
    child.close()
    assert process.poll() is not None
    assert not Path(child._child._folder.name).exists()


def test_without_an_environment_it_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(EXECUTORCH.variable, raising=False)
    reason = why_unavailable("executorch") or ""
    assert "SAMESPACE_EXECUTORCH_PYTHON names no Python" in reason
    assert "pip install torch==2.13.0; DIR/bin/pip install executorch==1.5.1" in reason
    with pytest.raises(ConfigError, match="names no Python"):
        exporter_class("executorch")().convert(_graph(), "fp32")
    for wrong, message in (
        (str(tmp_path / "nothing"), "is no Python that can be started"),
        ("/bin/false", "is no Python that can be started"),
    ):
        monkeypatch.setenv(EXECUTORCH.variable, wrong)
        assert message in (why_unavailable("executorch") or "")
    monkeypatch.setenv("LACKING_PYTHON", sys.executable)
    lacking = OtherPython("LACKING_PYTHON", ("no-such-package", "numpy"), "the test", "python -m venv DIR")
    assert "has no no-such-package. Make one with" in (lacking.missing() or "")
    assert lacking.version() is None


def test_what_it_cannot_do_is_refused_before_any_work() -> None:
    exporter = exporter_class("executorch")()
    with pytest.raises(ConfigError, match="needs calibration pictures"):
        exporter.convert(_graph(), "int8")
    with pytest.raises(ConfigError, match="no single layers in float, so not stem"):
        exporter.convert(_graph(), "int8", ExportOptions(_pictures(4), ("stem",)))


# From here on with a real ExecuTorch.

NEEDED = pytest.mark.skipif(
    not os.environ.get(EXECUTORCH.variable),
    reason=f"{EXECUTORCH.variable} names no environment with executorch: too large for every machine that runs the tests",
)


def _pictures(count: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, SIZE // 6, SIZE // 6, 1), np.uint8))


def _model() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = build_model("residual", {"dim": DIM, "image_size": SIZE, "width": 8, "stages": 2})
        model.train()
        with torch.no_grad():
            model(torch.randn(16, 3, SIZE, SIZE))  # batch-norm statistics that are not those of a fresh network
    return model.eval()


def _preprocess() -> Preprocess:
    return Preprocess(size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


def _graph() -> DeviceGraph:
    return DeviceGraph(_model(), _preprocess())


def _artifact(conversion: Conversion, precision: Precision) -> LoadedArtifact:
    spec = artifact_of(conversion, exporter_class("executorch"), precision, artifact_id(conversion.files))
    return LoadedArtifact(spec, conversion.files, SIZE, DIM)


@pytest.fixture(scope="module")
def programs() -> dict[str, LoadedArtifact]:
    """Both precisions, converted as an export converts: in a worker process."""
    import safetensors.torch

    weights = safetensors.torch.save(_model().state_dict())
    record = ModelRecord(
        name="phone",
        role="edge",
        family="residual",
        arguments={"dim": DIM, "image_size": SIZE, "width": 8, "stages": 2},
        dim=DIM,
        preprocess=_preprocess(),
        weights_sha256=digest(weights),
    )
    model, options = RunModel("phone", record, weights), ExportOptions(calibration=_pictures(16))
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    made = convert([Job(model, "executorch", precision, options) for precision in precisions])
    return {precision: _artifact(one, precision) for precision, one in zip(precisions, made, strict=True)}


@NEEDED
@pytest.mark.export
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999999), ("int8", 0.98)])
def test_a_program_computes_what_the_model_does(programs: dict[str, LoadedArtifact], precision: str, least: float) -> None:
    pictures = _pictures(12)
    with torch.no_grad():
        expected = _graph()(torch.from_numpy(pictures)).numpy()
    with open_runtime(programs[precision]) as runtime:
        rows = runtime.run(pictures)
        assert runtime.name == "executorch"
        assert runtime.version().startswith("executorch 1.")
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3), "the L2 norm is in float"
    assert cosine(rows, expected).min() > least
    assert programs[precision].spec.recipe["executorch"]
    assert programs["int8"].spec.recipe["calibration"] == 16


@NEEDED
@pytest.mark.export
def test_equal_models_give_equal_programs(programs: dict[str, LoadedArtifact]) -> None:
    again = exporter_class("executorch")().convert(_graph(), "int8", ExportOptions(calibration=_pictures(16)))
    assert again.files == programs["int8"].files
    assert len(again.files[""]) < len(programs["fp32"].single_file)


@NEEDED
@pytest.mark.export
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_program_is_refused_and_nothing_else_happens(programs: dict[str, LoadedArtifact], damage: str) -> None:
    data = programs["fp32"].single_file
    rng = np.random.default_rng(0)
    broken = {"cut": data[: len(data) // 2], "noise": rng.bytes(len(data)), "empty": b""}[damage]
    spec = programs["fp32"].spec
    with (
        pytest.raises(RuntimeFailure, match="ExecuTorch"),
        open_runtime(LoadedArtifact(spec, {"": broken}, SIZE, DIM)) as runtime,
    ):
        runtime.run(_pictures(1))


@NEEDED
@pytest.mark.export
def test_another_width_or_type_than_the_manifest_says_is_refused(programs: dict[str, LoadedArtifact]) -> None:
    one = programs["fp32"]
    wider = LoadedArtifact(one.spec, one.files, SIZE, DIM + 1)
    message = rf"shape \(1, {DIM}\), expected \(1, {DIM + 1}\)"
    with open_runtime(wider) as runtime, pytest.raises(RuntimeFailure, match=message):
        runtime.run(_pictures(1))
    wrong = one.spec.model_copy(update={"input": one.spec.input.model_copy(update={"dtype": "float32"})})
    with pytest.raises(RuntimeFailure, match="the input is uint8, the manifest says float32"):
        open_runtime(LoadedArtifact(wrong, one.files, SIZE, DIM))


@NEEDED
@pytest.mark.export
def test_a_model_that_cannot_be_lowered_is_an_export_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from samespace.export.formats import executorch

    monkeypatch.setattr(executorch, "_archives", lambda graph: [b"no archive"] * 3)
    with pytest.raises(ExportError, match="ExecuTorch could not lower the model"):
        exporter_class("executorch")().convert(_graph(), "fp32")
