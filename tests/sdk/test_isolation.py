"""A stranger's artifact in a child process: same embeddings, and nothing that it does takes the parent down."""

import gc
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import ConfigError, RuntimeFailure
from samespace.sdk.isolation import IsolatedRuntime, Limits
from samespace.sdk.runtimes.base import LoadedArtifact, RuntimeOptions
from samespace.sdk.runtimes.onnx import OnnxRuntime
from samespace.sdk.runtimes.registry import RUNTIMES

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits are POSIX")

#: Runtimes that behave as a broken or hostile artifact could make one behave. The artifact's bytes say what to do, and when.
HOSTILE = """
import ctypes, os, resource, signal, subprocess, sys, tempfile, threading, time
import numpy as np
from samespace.sdk.errors import ConfigError, RuntimeFailure
from samespace.sdk.runtimes.base import Runtime


class Hostile(Runtime):
    name, format = "hostile", "onnx"

    def __init__(self, artifact, options=None):
        super().__init__(artifact, options)
        when, _, self.what = artifact.single_file.decode().partition(" ")
        self.now = when == "open"
        self.act()
        self.now = True

    def _infer(self, images):
        answer = self.act()
        return np.ones((len(images), self.artifact.dim), np.float32) if answer is None else answer

    def act(self):
        return getattr(self, self.what)() if self.now else None

    def nothing(self): pass
    def segfault(self): ctypes.string_at(0)
    def abort(self): os.abort()
    def leave(self): os._exit(0)
    def refuse(self): raise RuntimeFailure("not this one\\x1b[31m, thanks\\nbye")
    def misconfigured(self): raise ConfigError("pip install 'samespace[onnx]'")
    def surprise(self): raise ZeroDivisionError
    def hang(self): threading.Event().wait()
    def stop(self): os.kill(os.getpid(), signal.SIGSTOP)
    def spin(self):
        while True: pass
    def eat(self): self.meal = [bytearray(64 << 20) for _ in range(1000)]
    def fill(self):
        with tempfile.TemporaryFile() as file:
            for _ in range(10_000): file.write(bytes(1 << 20))
    def open_all(self): self.files = [open(os.devnull) for _ in range(100_000)]
    def print_much(self):
        print("x" * 1_000_000); print("y" * 1_000_000, file=sys.stderr); os.write(1, b"z" * 1_000_000)
    def garbage(self):
        for descriptor in range(3, 20):
            try: os.write(descriptor, b"\\xff" * 64)
            except OSError: pass
    def escape(self):
        for descriptor in range(20):
            try: os.set_inheritable(descriptor, True)
            except OSError: pass
        escaped = subprocess.Popen(["sleep", "60"], start_new_session=True, close_fds=False)
        with open(os.path.join(os.path.dirname(__file__), "escaped"), "w") as file: file.write(str(escaped.pid))
        self.hang()
    def look(self):
        limits = [resource.getrlimit(what)[0] for what in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]
        secret = os.environ.get("SECRET_TOKEN")
        raise RuntimeFailure(f"{os.getcwd()} {sorted(os.listdir())} {secret} {limits} {sys.stdin.read()!r}")
    def wrong_shape(self): return np.ones((1, 1), np.float32)
    def not_a_number(self): return np.full((1, self.artifact.dim), np.nan, np.float32)
"""


@pytest.fixture
def hostile(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., IsolatedRuntime]:
    """``hostile("open segfault")``, ``hostile("run hang", run_seconds=1)``: opens such an artifact."""
    (tmp_path / "hostile_runtime.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(RUNTIMES, "hostile", "hostile_runtime:Hostile")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")

    def open_it(plan: str, **limits: Any) -> IsolatedRuntime:
        spec, _ = toy.artifact(b"")
        artifact = LoadedArtifact(spec, {"": plan.encode()}, size=toy.size, dim=toy.dim)
        return IsolatedRuntime(artifact, "hostile", limits=Limits(**limits))

    return open_it


def images(toy: Any, n: int = 1) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (n, toy.size, toy.size, 3), np.uint8)


def assert_gone(runtime: IsolatedRuntime) -> None:
    """The child has ended, and its folder with it."""
    assert runtime._child._process.poll() is not None
    assert not Path(runtime._child._folder.name).exists()


# --- it works ---------------------------------------------------------------------------------------


def test_it_answers_as_the_runtime_itself(toy: Any, toy_bundle: Callable[..., Bundle]) -> None:
    artifact = toy_bundle().artifact("onnx")
    batch = images(toy, 37)
    options = RuntimeOptions(threads=1, batch_size=8)
    with OnnxRuntime(artifact, options) as direct, IsolatedRuntime(artifact, "onnx", options) as isolated:
        np.testing.assert_array_equal(isolated.run(batch), direct.run(batch))
        np.testing.assert_array_equal(isolated.run(batch[:0]), direct.run(batch[:0]))
        np.testing.assert_array_equal(isolated.run(batch[:, ::-1]), direct.run(batch[:, ::-1]))
        assert isolated.inner == "onnx"
        with pytest.raises(RuntimeFailure, match="images must be uint8"):
            isolated.run(batch.astype(np.float32))  # type: ignore[arg-type]
        isolated.run(batch)
    assert_gone(isolated)


def test_the_embedder_opens_an_unsigned_bundle_this_way(toy: Any, toy_bundle: Callable[..., Bundle]) -> None:
    bundle = toy_bundle(signed=False)
    assert not bundle.trusted
    with Embedder.open(bundle, "onnx") as embedder:
        assert isinstance(embedder.runtime, IsolatedRuntime)
        np.testing.assert_allclose(embedder.embed(toy.images[:5]), toy.embed(toy.images[:5], toy.edge), atol=1e-6)


def test_a_large_batch_passes_through_the_pipes(hostile: Callable[..., IsolatedRuntime], toy: Any) -> None:
    with hostile("run nothing") as runtime:
        assert runtime.run(images(toy, 4000)).shape == (4000, toy.dim)


def test_several_threads_may_use_it(toy: Any, toy_bundle: Callable[..., Bundle]) -> None:
    artifact, batches = toy_bundle().artifact("onnx"), [images(toy, n) for n in range(1, 9)]
    with OnnxRuntime(artifact) as direct, IsolatedRuntime(artifact, "onnx") as isolated:
        results: dict[int, np.ndarray] = {}
        threads = [
            threading.Thread(target=lambda i=i: results.update({i: isolated.run(batches[i])})) for i in range(len(batches))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, batch in enumerate(batches):
            np.testing.assert_allclose(results[i], direct.run(batch), atol=1e-6)


# --- it is limited ----------------------------------------------------------------------------------


def test_the_child_has_limits_an_empty_folder_and_no_secrets(hostile: Callable[..., IsolatedRuntime]) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        hostile("open look", cpu_seconds=123, open_files=45)
    folder, rest = str(caught.value).split(" ", 1)
    assert folder != str(Path.cwd())
    assert not Path(folder).exists()
    assert rest == "[] None [123, 45, 0] ''"


def test_modules_of_the_working_directory_are_not_imported(
    hostile: Callable[..., IsolatedRuntime], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path_factory.mktemp("trap")
    for name in ("numpy.py", "pydantic.py", "json.py"):
        (trap / name).write_text("raise SystemExit('trapped')")
    monkeypatch.chdir(trap)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    hostile("open nothing").close()


# --- it goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "message", "limits"),
    [
        ("open segfault", "SIGSEGV", {}),
        ("open abort", "SIGABRT", {}),
        ("open leave", "exit code 0", {}),
        ("open garbage", "no embedding", {}),
        ("open refuse", "not this one.* thanks bye", {}),
        ("open surprise", "ZeroDivisionError", {}),
        ("open hang", "no answer .* within 1 s on opening it", {"open_seconds": 1}),
        ("open stop", "no answer .* within 2 s on opening it", {"open_seconds": 2}),
        ("open spin", "SIGXCPU", {"cpu_seconds": 2}),
        ("open eat", "out of memory", {"memory_bytes": 1 << 30}),
        ("open fill", "File too large", {"file_bytes": 8 << 20}),
        ("open open_all", "Too many open files", {"open_files": 40}),
    ],
)
def test_whatever_happens_on_opening_is_a_runtime_failure(
    hostile: Callable[..., IsolatedRuntime], plan: str, message: str, limits: dict[str, Any]
) -> None:
    with pytest.raises(RuntimeFailure, match=message) as caught:
        hostile(plan, **limits)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("plan", "message", "limits"),
    [
        ("run segfault", "on a batch of 1 .*SIGSEGV", {}),
        ("run leave", "exit code 0", {}),
        ("run garbage", "no embedding", {}),
        ("run refuse", "not this one", {}),
        ("run hang", "no answer .* within 0.5 s on a batch of 1", {"run_seconds": 0.5}),
    ],
)
def test_whatever_happens_on_running_is_a_runtime_failure(
    hostile: Callable[..., IsolatedRuntime], toy: Any, plan: str, message: str, limits: dict[str, Any]
) -> None:
    runtime = hostile(plan, **limits)
    with pytest.raises(RuntimeFailure, match=message):
        runtime.run(images(toy))
    assert_gone(runtime)
    with pytest.raises(RuntimeFailure, match="has ended; open the runtime again"):
        runtime.run(images(toy))
    runtime.close()


def test_a_missing_package_is_not_the_artifacts_fault(hostile: Callable[..., IsolatedRuntime]) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'samespace\[onnx\]'"):
        hostile("open misconfigured")


def test_a_process_that_escapes_does_not_hold_the_parent(
    hostile: Callable[..., IsolatedRuntime], toy: Any, tmp_path: Path
) -> None:
    # It keeps the other ends of the pipes open, so that no end of file ever comes.
    runtime = hostile("run escape", run_seconds=2)
    with pytest.raises(RuntimeFailure, match="within 2 s"):
        runtime.run(images(toy))
    assert_gone(runtime)
    os.kill(int((tmp_path / "escaped").read_text()), signal.SIGKILL)


def test_what_libraries_print_does_not_reach_the_answers(hostile: Callable[..., IsolatedRuntime], toy: Any) -> None:
    with hostile("run print_much") as runtime:
        assert (runtime.run(images(toy)) == 1).all()


def test_an_answer_of_another_shape_is_refused(hostile: Callable[..., IsolatedRuntime], toy: Any) -> None:
    with hostile("run wrong_shape") as runtime, pytest.raises(RuntimeFailure, match="answered with shape"):
        runtime.run(images(toy))


def test_not_a_number_arrives_as_such(hostile: Callable[..., IsolatedRuntime], toy: Any) -> None:
    with hostile("run not_a_number") as runtime:
        assert np.isnan(runtime.run(images(toy))).all()  # the Embedder judges it


def test_broken_onnx_is_refused_with_its_path(toy: Any) -> None:
    spec, _ = toy.artifact(b"")
    with pytest.raises(RuntimeFailure, match=rf"{spec.path}: onnxruntime .* refuses it"):
        IsolatedRuntime(LoadedArtifact(spec, {"": b"no graph"}, size=toy.size, dim=toy.dim), "onnx")


def test_a_runtime_for_another_format_or_none(toy: Any, toy_bundle: Callable[..., Bundle]) -> None:
    artifact = toy_bundle().artifact("onnx")
    with pytest.raises(ConfigError, match="runs tflite artifacts"):
        IsolatedRuntime(artifact, "tflite")
    with pytest.raises(ConfigError, match="no runtime is called"):
        IsolatedRuntime(artifact, "abacus")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches another process's child")
def test_the_child_ends_with_its_parent(toy: Any, toy_bundle: Callable[..., Bundle]) -> None:
    bundle = toy_bundle()
    script = """
import os, sys
from pathlib import Path
from samespace.sdk.bundle import Bundle
from samespace.sdk.isolation import IsolatedRuntime
bundle = Bundle.open(sys.argv[1], allow_unsigned=True)
runtime = IsolatedRuntime(bundle.artifact("onnx"), "onnx")
print(runtime._child._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    result = subprocess.run([sys.executable, "-c", script, str(bundle.path)], capture_output=True, text=True)
    assert result.returncode == -signal.SIGKILL
    try:
        child = os.pidfd_open(int(result.stdout))
    except ProcessLookupError:
        return
    ended, _, _ = select.select([child], [], [], 60)  # readable when the process has ended, reaped or not
    os.close(child)
    assert ended


def test_a_runtime_that_is_forgotten_takes_its_child_along(hostile: Callable[..., IsolatedRuntime]) -> None:
    runtime = hostile("run nothing")
    process = runtime._child._process
    del runtime
    gc.collect()
    assert process.poll() is not None
