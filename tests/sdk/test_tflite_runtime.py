"""The old tflite-runtime, in a process of its own: same embeddings, its crashes are ours to report, nothing is left behind.

The model is the one of the bundle that stays in the tests: small, and opened by every interpreter.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import json
import os
import select
import signal
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samespace.sdk.errors import ConfigError, RuntimeFailure
from samespace.sdk.isolation import IsolatedRuntime
from samespace.sdk.manifest import Manifest
from samespace.sdk.runtimes import LoadedArtifact, RuntimeOptions, available, open_runtime, runtimes_for, tflite_child
from samespace.sdk.runtimes.registry import runtime_class, why_unavailable
from samespace.sdk.runtimes.tflite import TfliteRuntime
from samespace.sdk.runtimes.tflite_runtime import TFLITE, OldTfliteRuntime

BUNDLE = Path(__file__).parents[1] / "corpus" / "bundle-v1" / "phone.samespace"
RUNTIMES = ("tflite", "tflite_runtime")

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="forks and sends signals"),
    pytest.mark.skipif(not available("tflite_runtime"), reason="tflite-runtime is not installed"),
]


@pytest.fixture(scope="module")
def artifact() -> LoadedArtifact:
    manifest = Manifest.model_validate_json((BUNDLE / "manifest.json").read_bytes())
    spec = next(spec for spec in manifest.artifacts if spec.format == "tflite")
    return LoadedArtifact(spec, {"": (BUNDLE / spec.path).read_bytes()}, manifest.model.preprocess.size, manifest.model.dim)


@pytest.fixture(scope="module")
def images(artifact: LoadedArtifact) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (19, artifact.size, artifact.size, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(artifact: LoadedArtifact, images: np.ndarray) -> np.ndarray:
    """LiteRT's embeddings."""
    with open_runtime(artifact, "tflite") as runtime:
        return runtime.run(images)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """``bare_python(packages)``: a Python with those packages of this environment, and nothing of ours."""

    def make(packages: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        site = next(folder.glob("lib/python*/site-packages"))
        for package in packages:
            distribution = importlib.metadata.distribution(package)
            for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}:
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
        return folder / "bin" / "python"

    return make


def gone(runtime: OldTfliteRuntime) -> bool:
    return runtime._child._child._process.poll() is not None and not Path(runtime._child._child._folder.name).exists()


# --- it works ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_it_answers_as_litert_in_any_batch(
    artifact: LoadedArtifact, images: np.ndarray, expected: np.ndarray, batch: int
) -> None:
    with open_runtime(artifact, "tflite_runtime", RuntimeOptions(threads=1, batch_size=batch)) as runtime:
        np.testing.assert_allclose(runtime.run(images), expected, atol=1e-5)
        assert runtime.run(images[:0]).shape == (0, artifact.dim)


@pytest.mark.parametrize("name", RUNTIMES)
def test_without_optimisations_it_answers_the_same(
    name: str, artifact: LoadedArtifact, images: np.ndarray, expected: np.ndarray
) -> None:
    with open_runtime(artifact, name, RuntimeOptions(optimise=False)) as runtime:
        np.testing.assert_allclose(runtime.run(images), expected, atol=1e-5)


def test_litert_stays_the_default(artifact: LoadedArtifact) -> None:
    assert runtimes_for("tflite") == RUNTIMES
    with open_runtime(artifact) as runtime:
        assert isinstance(runtime, TfliteRuntime)
    assert runtime_class("tflite_runtime").version() == f"tflite-runtime {importlib.metadata.version('tflite-runtime')}"


# --- an environment of its own ----------------------------------------------------------------------


def test_an_environment_of_its_own_needs_nothing_of_ours(
    artifact: LoadedArtifact,
    images: np.ndarray,
    expected: np.ndarray,
    bare_python: Callable[[tuple[str, ...]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As under NumPy 2: this process must not be asked for tflite-runtime, and the other has no samespace."""
    python = bare_python(("numpy", "tflite-runtime"))
    assert subprocess.run([python, "-I", "-c", "import samespace"], capture_output=True).returncode == 1
    monkeypatch.setattr("samespace.sdk.runtimes.child.version", lambda _: "2.1.0")
    assert "has NumPy 2.1.0" in (why_unavailable("tflite_runtime") or "")
    monkeypatch.setenv(TFLITE.variable, str(python))
    assert why_unavailable("tflite_runtime") is None
    assert runtime_class("tflite_runtime").version() == f"tflite-runtime {importlib.metadata.version('tflite-runtime')}"
    with open_runtime(artifact, "tflite_runtime") as runtime:
        np.testing.assert_allclose(runtime.run(images), expected, atol=1e-5)
        assert os.readlink(f"/proc/{runtime._child._child._process.pid}/exe") == os.path.realpath(python)  # type: ignore[attr-defined]


def test_an_environment_that_cannot_work_is_said_with_the_mend(
    artifact: LoadedArtifact, bare_python: Callable[[tuple[str, ...]], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    empty, modern = bare_python(()), bare_python(("tflite-runtime",))
    (next(modern.parents[1].glob("lib/python*/site-packages")) / "numpy-2.1.0.dist-info").mkdir()
    metadata = next(modern.parents[1].glob("lib/python*/site-packages/numpy-*")) / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.0\n")
    for python, reason in (
        (tmp_path / "nowhere", "is no Python that can be started"),
        (empty, "has no tflite-runtime"),
        (modern, r"has NumPy 2\.1\.0, and tflite-runtime needs NumPy < 2"),
    ):
        monkeypatch.setenv(TFLITE.variable, str(python))
        assert runtimes_for("tflite") == ("tflite",)
        with pytest.raises(
            ConfigError, match=rf"'tflite_runtime'.*{reason}.*tflite-runtime==2\.14\.0 'numpy<2'.*{TFLITE.variable}"
        ):
            open_runtime(artifact, "tflite_runtime")


def test_tflite_does_not_fall_back_on_it_under_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import passes under NumPy 2, and its interpreter then fails with a riddle."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ai_edge_litert" else find(name))
    assert why_unavailable("tflite") is None
    monkeypatch.setattr(np, "__version__", "2.1.0")
    assert "samespace[tflite]" in (why_unavailable("tflite") or "")


def test_the_child_is_written_for_the_oldest_python_of_its_package() -> None:
    ast.parse(Path(tflite_child.__file__).read_text(), feature_version=(3, 9))


# --- what goes wrong --------------------------------------------------------------------------------


def test_what_the_interpreter_refuses_is_said(artifact: LoadedArtifact) -> None:
    for name in RUNTIMES:
        with pytest.raises(RuntimeFailure, match=r"^artifacts/model.*interpreter refuses it: "):
            open_runtime(LoadedArtifact(artifact.spec, {"": b"no flatbuffer"}, artifact.size, artifact.dim), name)


def test_another_interface_than_the_manifests_is_refused(artifact: LoadedArtifact, images: np.ndarray) -> None:
    spec = artifact.spec.model_copy(update={"input": artifact.spec.input.model_copy(update={"dtype": "float32"})})
    with pytest.raises(RuntimeFailure, match="the input is uint8, the manifest says float32"):
        open_runtime(LoadedArtifact(spec, artifact.files, artifact.size, artifact.dim), "tflite_runtime")
    other = LoadedArtifact(artifact.spec, artifact.files, artifact.size, artifact.dim + 1)
    with (
        open_runtime(other, "tflite_runtime") as runtime,
        pytest.raises(RuntimeFailure, match=rf"expected \(19, {other.dim}\)"),
    ):
        runtime.run(images)


def test_a_batch_that_it_cannot_run_does_not_end_it(artifact: LoadedArtifact, images: np.ndarray, expected: np.ndarray) -> None:
    spec = artifact.spec.model_copy(update={"input": artifact.spec.input.model_copy(update={"layout": "nchw"})})
    with open_runtime(LoadedArtifact(spec, artifact.files, artifact.size, artifact.dim), "tflite_runtime") as runtime:
        with pytest.raises(RuntimeFailure, match=r"failed on a batch of 3: .*(channel|input|shape|size)"):
            runtime.run(images[:3])
        runtime.artifact = artifact
        np.testing.assert_allclose(runtime.run(images), expected, atol=1e-5)


def test_a_child_that_dies_is_a_failure_and_stays_one(artifact: LoadedArtifact, images: np.ndarray) -> None:
    with OldTfliteRuntime(artifact) as runtime:
        runtime._child._child._process.send_signal(signal.SIGSEGV)
        with pytest.raises(
            RuntimeFailure, match=r"failed on a batch of 2: it crashed \(SIGSEGV\); .* try the runtime 'tflite'"
        ):
            runtime.run(images[:2])
        assert gone(runtime)
        with pytest.raises(RuntimeFailure, match="has ended; open it again"):
            runtime.run(images[:2])


def test_a_child_that_says_nothing_is_ended(
    artifact: LoadedArtifact, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OldTfliteRuntime, "run_seconds", 0.3)
    with OldTfliteRuntime(artifact) as runtime:
        runtime._child._child._process.send_signal(signal.SIGSTOP)
        with pytest.raises(RuntimeFailure, match=r"failed on a batch of 1: no answer within 0\.3 s"):
            runtime.run(images[:1])
        assert gone(runtime)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "not of the protocol|Expecting value"),
        (b"7", "not of the protocol"),
        (b'{"bytes": []}', "inputs"),
        (b'{"error": "\\u001b[31mred", "bytes": []}', r"refuses it:  \[31mred"),
    ],
)
def test_a_child_that_babbles_is_a_failure(
    answer: bytes, said: str, artifact: LoadedArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "answer").write_bytes(len(answer).to_bytes(8, "big") + answer)
    python = tmp_path / "python"
    versions = json.dumps({"tflite-runtime": "2.14.0", "numpy": "1.26.4"})
    python.write_text(
        f"#!/bin/sh\nif [ \"$2\" = -c ]; then echo '{versions}'; else cat '{tmp_path}/answer'; exec cat >&2; fi\n"
    )
    python.chmod(0o755)
    monkeypatch.setenv(TFLITE.variable, str(python))
    with pytest.raises(RuntimeFailure, match=said):
        open_runtime(artifact, "tflite_runtime")


# --- nothing is left behind -------------------------------------------------------------------------


def test_it_ends_with_its_runtime(artifact: LoadedArtifact) -> None:
    runtime = OldTfliteRuntime(artifact)
    child = runtime._child._child
    runtime.close()
    assert gone(runtime)
    runtime = OldTfliteRuntime(artifact)
    child = runtime._child._child
    del runtime
    gc.collect()
    assert child._process.poll() is not None


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")
def test_it_ends_with_a_parent_that_is_killed(artifact: LoadedArtifact, tmp_path: Path) -> None:
    """The plain parent by its pipe, which closes; inside a limited child process also when it does not listen."""
    (tmp_path / "spec.json").write_text(artifact.spec.model_dump_json())
    (tmp_path / "model").write_bytes(artifact.single_file)
    script = f"""
import pathlib, sys
from samespace.sdk.manifest import Artifact
from samespace.sdk.runtimes import LoadedArtifact
from samespace.sdk.runtimes.tflite_runtime import OldTfliteRuntime
folder = pathlib.Path(sys.argv[1])
spec = Artifact.model_validate_json((folder / "spec.json").read_text())
runtime = OldTfliteRuntime(LoadedArtifact(spec, {{"": (folder / "model").read_bytes()}}, {artifact.size}, {artifact.dim}))
print(runtime._child._child._process.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([child], [], [], 20)[0], "the child outlives its parent"
    os.close(child)

    isolated = IsolatedRuntime(artifact, "tflite_runtime")
    outer = isolated._child._process.pid
    pid = int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])
    child = os.pidfd_open(pid)
    os.kill(pid, signal.SIGSTOP)
    isolated.close()
    assert select.select([child], [], [], 20)[0], "the child outlives the limited process that it is in"
    os.close(child)


# --- damaged files ----------------------------------------------------------------------------------

#: Opens and runs mutants of a model, each in a fork of its own, so that a crash is that mutant's. The fork begins where the
#: engine is loaded and nothing is open. Prints a line of JSON: how each ended, and after how many seconds.
FORKS = """
import importlib, json, os, pathlib, resource, sys, time
import numpy as np
from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.manifest import Artifact
from samespace.sdk.runtimes import LoadedArtifact, RuntimeOptions, tflite_child
from samespace.sdk.runtimes.tflite import TfliteRuntime
from mutants import mutants

name, folder, size, dim, count = sys.argv[1], pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:])
spec = Artifact.model_validate_json((folder / "spec.json").read_text())
importlib.import_module({"tflite": "ai_edge_litert", "tflite_runtime": "tflite_runtime"}[name] + ".interpreter")
image = np.zeros((1, size, size, 3), np.uint8)

def attempt(data):
    if name == "tflite":
        try:
            TfliteRuntime(LoadedArtifact(spec, {"": data}, size, dim), RuntimeOptions(threads=1)).run(image)
        except RuntimeFailure:
            return 1
        return 0
    try:
        interpreter = tflite_child._open(data, {"optimise": True, "threads": 1})
        entrance, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        batch = {"shape": image.shape, "dtype": "uint8"}
        tflite_child._run(interpreter, entrance["index"], exit_["index"], batch, image.tobytes(), None)
    except Exception:
        return 1
    return 0

ends = []
for data in mutants((folder / "model").read_bytes(), count):
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        end = 2
        try:
            end = attempt(data)
        finally:
            os._exit(end)
    end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ends.append((end, time.monotonic() - began))
print(json.dumps(ends))
"""

MUTANTS = '''
import random

def mutants(model, count):
    """Changed bytes, cut ends, and pieces written over others; always the same ones."""
    choose = random.Random(5)
    for _ in range(count):
        data = bytearray(model)
        kind = choose.random()
        if kind < 0.1:
            del data[choose.randrange(len(data)):]
        elif kind < 0.3:
            length, source, target = choose.randrange(1, 64), choose.randrange(len(data)), choose.randrange(len(data))
            data[target:target + length] = data[source:source + length]
        else:
            # The tables are at both ends of the file; weights, whose change is no damage, fill the middle.
            for _ in range(choose.randrange(1, 12)):
                place = choose.randrange(4096)
                data[place if choose.random() < 0.5 else -1 - place] = choose.randrange(256)
        yield bytes(data)
'''


@pytest.mark.parametrize("name", RUNTIMES)
def test_500_damaged_files_never_take_the_process_down(name: str, artifact: LoadedArtifact, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(artifact.spec.model_dump_json())
    (tmp_path / "model").write_bytes(artifact.single_file)
    (tmp_path / "mutants.py").write_text(MUTANTS)
    count = 500
    answer = subprocess.run(
        [sys.executable, "-c", FORKS, name, str(tmp_path), str(artifact.size), str(artifact.dim), str(count)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *(entry for entry in sys.path if entry)])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    outcomes: list[tuple[int, float]] = json.loads(answer.stdout.splitlines()[-1])
    ends = [end for end, _ in outcomes]
    assert len(ends) == count
    # Embeddings, or our error; or the engine crashed, which is why it runs in a child. Nothing else, a TypeError say.
    assert {end for end in ends if end >= 0} == {0, 1}
    assert ends.count(1) > count // 20
    if name == "tflite_runtime":
        assert sum(end < 0 for end in ends) > count // 50, "if it no longer crashes, it need not be a process of its own"

    # The whole way, for some of those that crashed and were refused.
    namespace: dict[str, Callable[[bytes, int], list[bytes]]] = {}
    exec(MUTANTS, namespace)
    data = list(namespace["mutants"](artifact.single_file, count))
    quickest = sorted(range(count), key=lambda place: outcomes[place][1])
    crashed, refused = [place for place in quickest if ends[place] < 0], [place for place in quickest if ends[place] == 1]
    image = np.zeros((1, artifact.size, artifact.size, 3), np.uint8)
    for place in (*crashed[:4], *refused[:2]):
        mutant = LoadedArtifact(artifact.spec, {"": data[place]}, artifact.size, artifact.dim)
        with pytest.raises(RuntimeFailure, match=r"^artifacts/model"):
            open_and_run(mutant, name, image)
    open_and_run(artifact, name, image)


def open_and_run(artifact: LoadedArtifact, name: str, image: np.ndarray) -> None:
    """As a bundle is opened that nobody trusted signed; the old runtime has a process anyway."""
    options = RuntimeOptions(threads=1)
    with IsolatedRuntime(artifact, name, options) if name == "tflite" else open_runtime(artifact, name, options) as runtime:
        runtime.run(image)
