"""Running a stranger's artifact in a limited child process.

Artifacts are read by large native parsers, and a bundle that nobody known signed may have been made to break one.
:class:`IsolatedRuntime` is a :class:`~samespace.sdk.runtimes.base.Runtime` whose real runtime lives in a child process
(:mod:`samespace.sdk.isolation_child`): with limits on memory, CPU time, open files and written bytes, with an empty folder to
work in, without the parent's environment (tokens, keys). Whatever happens to the child, a crash included, the parent sees a
:class:`~samespace.sdk.errors.RuntimeFailure`. Of what the child answers nothing is parsed but one small JSON object and exactly
as many float32 values as were asked for.

It is no virtual machine: the child runs as the same user. It keeps a broken artifact from taking the process down, and a crude
attack from going far; for more, run the whole program in a container.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar, cast

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError, RuntimeFailure
from samespace.sdk.isolation_child import read_bytes, read_json, write_bytes, write_json
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.registry import RUNTIMES, runtime_class

__all__ = ["Child", "IsolatedRuntime", "Limits"]

_GIB = 1 << 30
#: What the child keeps of the environment: where libraries and temporary files are, how to talk; no secrets.
_ENVIRONMENT = (
    *("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL", "TZ", "OMP_NUM_THREADS"),
    *("SAMESPACE_TFLITE_PYTHON", "SAMESPACE_EXECUTORCH_PYTHON"),  # where runtimes find environments of their own
)
_STDERR_TAIL = 600

_T = TypeVar("_T")


@dataclass(frozen=True)
class Limits:
    """What the child may use. On Windows only the two time-outs hold.

    Attributes:
        memory_bytes: address space, libraries included.
        cpu_seconds: CPU time over the child's whole life, all threads together.
        open_files: descriptors at one time.
        file_bytes: largest file that it may write (a runtime may have to put the artifact into a temporary file).
        open_seconds: wall-clock time to start and to open the artifact.
        run_seconds: wall-clock time of one batch.
    """

    memory_bytes: int = 4 * _GIB
    cpu_seconds: int = 3600
    open_files: int = 256
    file_bytes: int = _GIB
    open_seconds: float = 120.0
    run_seconds: float = 120.0

    @classmethod
    def fitting(cls, artifact: LoadedArtifact) -> Limits:
        """The defaults, widened for a large artifact: parsers hold a few copies of the weights."""
        size = sum(len(data) for data in artifact.files.values())
        return cls(memory_bytes=cls.memory_bytes + 8 * size, file_bytes=size + (16 << 20))


class IsolatedRuntime(Runtime):
    """Runs an artifact by the runtime ``name`` of the registry, in a child process of its own.

    Args:
        artifact: what to run; its bytes are handed to the child, which reads nothing from the bundle.
        name: the runtime, as in :data:`samespace.sdk.runtimes.registry.RUNTIMES`.
        options: as for any runtime.
        limits: None takes :meth:`Limits.fitting`.

    Raises:
        ConfigError: no such runtime, one for another format, or its package is not installed.
        RuntimeFailure: the artifact was refused, or broke the child.
    """

    name: ClassVar[str] = "isolated"
    format: ClassVar[str] = ""

    def __init__(
        self, artifact: LoadedArtifact, name: str, options: RuntimeOptions | None = None, limits: Limits | None = None
    ) -> None:
        super().__init__(artifact, options)
        kind = runtime_class(name)
        if kind.format != artifact.spec.format:
            raise ConfigError(f"runtime {name!r} runs {kind.format} artifacts, {artifact.spec.path} is {artifact.spec.format}")
        self.inner = name
        self._limits = limits or Limits.fitting(artifact)
        self._lock = threading.Lock()
        self._child = Child()
        self._finalizer = weakref.finalize(self, self._child.kill)
        self._exchange(lambda: self._open(RUNTIMES[name]), self._limits.open_seconds, "opening it")

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self._exchange(lambda: self._run(images), self._limits.run_seconds, f"a batch of {len(images)}")

    def close(self) -> None:
        """End the child; the runtime cannot be used afterwards."""
        self._finalizer()

    def _open(self, target: str) -> None:
        to_child = self._child.to_child
        request = {
            "limits": asdict(self._limits),
            "target": target,
            "spec": self.artifact.spec.model_dump(mode="json"),
            "options": asdict(self.options),
            "size": self.artifact.size,
            "dim": self.artifact.dim,
            "files": {path: len(data) for path, data in self.artifact.files.items()},
        }
        write_json(to_child, request)
        for data in self.artifact.files.values():
            write_bytes(to_child, data)
        to_child.flush()
        self._judge_answer(read_json(self._child.from_child))

    def _run(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        to_child, from_child = self._child.to_child, self._child.from_child
        write_json(to_child, {"shape": images.shape})
        write_bytes(to_child, np.ascontiguousarray(images).data.cast("B"))
        to_child.flush()
        self._judge_answer(read_json(from_child))
        rows = np.frombuffer(read_bytes(from_child, 4 * len(images) * self.artifact.dim), "<f4")
        return rows.reshape(len(images), self.artifact.dim).astype(np.float32)

    def _judge_answer(self, answer: object) -> None:
        if answer == {"ok": True}:
            return
        if not isinstance(answer, dict) or not isinstance(message := answer.get("error"), str):
            raise ValueError("the child's answer is not of the protocol")
        # The text may be the artifact's own: nothing that a terminal obeys, and not a whole screen of it.
        text = "".join(letter if letter.isprintable() else " " for letter in message[:2000])
        raise ConfigError(text) if answer.get("config") is True else RuntimeFailure(text)

    def _exchange(self, talk: Callable[[], _T], seconds: float, what: str) -> _T:
        """Let ``talk`` write to and read from the child; a dead, mute or lying child is killed and becomes a RuntimeFailure."""
        path = self.artifact.spec.path
        with self._lock:
            if not self._finalizer.alive:
                raise RuntimeFailure(f"{path}: its child process has ended; open the runtime again")
            try:
                return self._child.within(seconds, talk)
            except TimeoutError:
                self.close()
                raise RuntimeFailure(
                    f"{path}: no answer from its child process within {seconds:g} s on {what}; raise its limit if need be"
                ) from None
            except ValueError as error:
                self.close()
                raise RuntimeFailure(
                    f"{path}: its child process answered {what} with something that is no embedding ({error}); the artifact is"
                    " broken or hostile: get the bundle from a signer you trust"
                ) from None
            except (OSError, EOFError):
                end = self._child.describe_end()
                self.close()
                raise RuntimeFailure(
                    f"{path}: its child process ended on {what} ({end}); the artifact is broken, hostile or above the limits:"
                    " get the bundle from a signer you trust"
                ) from None
            except BaseException:
                # Refused, or interrupted in the middle of an answer: what would be read next belongs to this question.
                self.close()
                raise


class Child:
    """A process and its pipes.

    Args:
        command: by default :mod:`samespace.sdk.isolation_child` in this Python.
        session: give it a session of its own, so that what it starts ends with it. Without, it ends with this process's
            session; then it must start nothing itself.
        inherit: give it this process's whole environment, the user's home included: for our own code, never for a stranger's.
    """

    def __init__(self, command: Sequence[str] | None = None, *, session: bool = True, inherit: bool = False) -> None:
        self._own_session = session
        self._folder = tempfile.TemporaryDirectory(prefix="samespace-isolated-", ignore_cleanup_errors=True)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - a file, since a pipe that nobody reads would block the child
        environment = {name: os.environ[name] for name in (os.environ if inherit else _ENVIRONMENT) if name in os.environ}
        environment |= {
            # What this process can import, the child can; but not what lies in the folder it was started from.
            "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry),
            "TMPDIR": self._folder.name,
        }
        if not inherit:
            # Address space that is reserved per core and never used would count against the limit.
            environment |= {"HOME": self._folder.name, "MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command or [sys.executable, "-P", "-m", "samespace.sdk.isolation_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=self._folder.name,
            env=environment,
            start_new_session=session,
        )
        self.to_child = cast(BinaryIO, self._process.stdin)
        self.from_child = cast(BinaryIO, self._process.stdout)
        self._talk: threading.Thread | None = None

    def within(self, seconds: float, talk: Callable[[], _T]) -> _T:
        """What ``talk`` returns or raises.

        Raises:
            TimeoutError: it took longer than ``seconds``; it then goes on in its thread, until the process is killed.
        """
        results: list[_T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(talk())
            except BaseException as error:
                errors.append(error)

        # A thread, since neither reading from nor writing to a pipe has a time-out on all systems.
        self._talk = threading.Thread(target=work, daemon=True)
        self._talk.start()
        self._talk.join(seconds)
        if self._talk.is_alive():
            raise TimeoutError
        if errors:
            raise errors[0]
        return results[0]

    def kill(self) -> None:
        """End the process with all that it started, and remove its folder."""
        with contextlib.suppress(OSError):
            if os.name == "posix" and self._own_session:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        if self._talk is not None:
            self._talk.join(5)
        # A process that escaped may hold the other end open; closing a pipe that a thread waits on would wait as well.
        if self._talk is None or not self._talk.is_alive():
            for pipe in (self.to_child, self.from_child):
                with contextlib.suppress(OSError):
                    pipe.close()
        self._stderr.close()
        self._folder.cleanup()

    def describe_end(self) -> str:
        """How the process ended, with the end of what it printed."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "it went silent"
        how = f"exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _STDERR_TAIL))
        printed = self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        text = "".join(letter if letter.isprintable() else " " for letter in printed)
        return f"{how}: {text}" if text else how
