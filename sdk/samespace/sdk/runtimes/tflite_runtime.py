"""TFLite artifacts by the old ``tflite-runtime`` (2.14), which many devices still have, always in a child process.

It is a process of its own for two reasons: a damaged file crashes this interpreter, and it needs NumPy < 2, which the program
that uses samespace may not have. By default the child is this Python, where it has tflite-runtime and NumPy < 2. Otherwise give
it an environment of its own, with Python 3.9 to 3.11, and say where:

    python -m venv DIR
    DIR/bin/pip install tflite-runtime==2.14.0 'numpy<2'
    export SAMESPACE_TFLITE_PYTHON=DIR/bin/python

samespace need not be installed there.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError, RuntimeFailure
from samespace.sdk.isolation import Child, Limits
from samespace.sdk.isolation_child import read_bytes, read_json, write_bytes, write_json
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.tensors import as_input
from samespace.sdk.runtimes.tflite import check_interface

__all__ = ["PYTHON_VARIABLE", "OldTfliteRuntime"]

#: The environment variable that names the child's Python.
PYTHON_VARIABLE = "SAMESPACE_TFLITE_PYTHON"

_CHILD = Path(__file__).with_name("tflite_child.py")
_ASK = """
import importlib.metadata, json
found = {}
for name in ("tflite-runtime", "numpy"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = ""
print(json.dumps(found))
"""

_T = TypeVar("_T")


class OldTfliteRuntime(Runtime):
    """Runs a ``.tflite`` artifact by tflite-runtime.

    A crash of the interpreter is a :class:`~samespace.sdk.errors.RuntimeFailure`; the child ends with the runtime, or when the
    parent does.
    """

    name: ClassVar[str] = "tflite_runtime"
    format: ClassVar[str] = "tflite"
    packages: ClassVar[tuple[str, ...]] = ("tflite-runtime",)
    #: Wall-clock seconds to start the child and open the artifact, and for one batch.
    open_seconds: ClassVar[float] = 60.0
    run_seconds: ClassVar[float] = 120.0

    def __init__(self, artifact: LoadedArtifact, options: RuntimeOptions | None = None) -> None:
        super().__init__(artifact, options)
        engine = _engine()
        if engine.missing:
            raise ConfigError(_mend(engine.missing))
        self._lock = threading.Lock()
        try:
            # Without a session of its own: inside a limited child process it is to end with that.
            self._child = Child([engine.python, *engine.flags, str(_CHILD)], session=False)
        except OSError as error:
            raise ConfigError(_mend(f"{engine.python} cannot be started: {error}")) from None
        self._finalizer = weakref.finalize(self, self._child.kill)
        try:
            check_interface(artifact.spec, *self._exchange(self._open, self.open_seconds, "opening it"))
        except BaseException:
            self.close()
            raise

    @classmethod
    def unavailable(cls) -> str | None:
        missing = _engine().missing
        return _mend(missing) if missing else None

    @classmethod
    def version(cls) -> str:
        return f"tflite-runtime {found}" if (found := _engine().version) else "unknown"

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        tensor = as_input(images, self.artifact.spec.input)
        return self._exchange(lambda: self._run(tensor), self.run_seconds, f"a batch of {len(images)}")

    def close(self) -> None:
        """End the child; the runtime cannot be used afterwards."""
        self._finalizer()

    def _open(self) -> tuple[list[str], int]:
        to_child, model = self._child.to_child, self.artifact.single_file
        memory = Limits.fitting(self.artifact).memory_bytes
        write_json(to_child, {"threads": self.options.threads, "optimise": self.options.optimise, "memory": memory})
        write_bytes(to_child, model)
        to_child.flush()
        answer = self._answer("refuses it")
        inputs, outputs = answer.get("inputs"), answer.get("outputs")
        if not isinstance(inputs, list) or not isinstance(outputs, int):
            raise ValueError("an answer without inputs and outputs")
        return inputs, outputs

    def _run(self, tensor: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        write_json(self._child.to_child, {"shape": tensor.shape, "dtype": tensor.dtype.name})
        write_bytes(self._child.to_child, tensor.data.cast("B"))
        self._child.to_child.flush()
        shape = self._answer(f"failed on a batch of {len(tensor)}").get("shape")
        if not isinstance(shape, list) or not all(isinstance(edge, int) and edge >= 0 for edge in shape):
            raise ValueError("an answer without a shape")
        # A model that gives another shape than it should is reported by the base class; nothing is allocated for absurd ones.
        size = 4 * math.prod(shape)
        if size > 64 * len(tensor) * max(1, self.artifact.dim) + (1 << 20):
            raise ValueError(f"an output of shape {shape}")
        return np.frombuffer(read_bytes(self._child.from_child, size), "<f4").reshape(shape).astype(np.float32)

    def _answer(self, failure: str) -> dict[str, Any]:
        answer = read_json(self._child.from_child)
        if not isinstance(answer, dict):
            raise ValueError("an answer that is no JSON object")
        if answer.get("ok") is True:
            return answer
        # The text may be the artifact's own: nothing that a terminal obeys.
        text = "".join(letter if letter.isprintable() else " " for letter in str(answer.get("error"))[:300])
        raise RuntimeFailure(f"{self.artifact.spec.path}: tflite-runtime: the TFLite interpreter {failure}: {text}")

    def _exchange(self, talk: Callable[[], _T], seconds: float, what: str) -> _T:
        """Let ``talk`` write to and read from the child; a dead or mute child is killed and becomes a RuntimeFailure."""
        path = self.artifact.spec.path
        with self._lock:
            if not self._finalizer.alive:
                raise RuntimeFailure(f"{path}: its tflite-runtime process has ended; open the runtime again")
            try:
                return self._child.within(seconds, talk)
            except RuntimeFailure:
                raise  # said by the child, which can go on
            except TimeoutError:
                self.close()
                raise RuntimeFailure(f"{path}: tflite-runtime gave no answer within {seconds:g} s on {what}") from None
            except ValueError as error:
                self.close()
                raise RuntimeFailure(f"{path}: tflite-runtime answered {what} with what is no embedding: {error}") from None
            except (OSError, EOFError):
                # What the interpreter says at its start is no reason.
                end = self._child.describe_end().partition(": INFO")[0]
                self.close()
                raise RuntimeFailure(
                    f"{path}: tflite-runtime crashed on {what} ({end}); the file is damaged, or this old interpreter cannot "
                    "run it: try the runtime 'tflite' (LiteRT)"
                ) from None
            except BaseException:
                # Interrupted in the middle of an answer: what would be read next belongs to this question.
                self.close()
                raise


@dataclass(frozen=True)
class _Engine:
    """A Python for the child: its command with flags, the version of tflite-runtime, and what keeps it from working."""

    python: str
    flags: tuple[str, ...]
    version: str = ""
    missing: str = ""


def _engine() -> _Engine:
    if chosen := os.environ.get(PYTHON_VARIABLE):
        return _asked(chosen)
    found = ""
    if importlib.util.find_spec("tflite_runtime") is not None:
        try:
            found = version("tflite-runtime")
        except PackageNotFoundError:
            found = "unknown"
    # -P: not what lies beside the script, of which some is named like packages.
    return _judged(sys.executable, ("-P",), found, np.__version__)


@functools.lru_cache(maxsize=8)
def _asked(python: str) -> _Engine:
    """An environment that is not ours; asked once, by starting its Python."""
    # -I: nothing of our environment; neither our paths nor the user's packages.
    flags = ("-I",)
    # The child is started in a folder of its own.
    python = str(Path(shutil.which(python) or python).absolute())
    try:
        answer = subprocess.run([python, *flags, "-c", _ASK], capture_output=True, text=True, timeout=60, check=True)
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return _Engine(python, flags, missing=f"{PYTHON_VARIABLE} = {python} is no Python that can be started: {error}")
    return _judged(python, flags, found["tflite-runtime"], found["numpy"])


def _judged(python: str, flags: tuple[str, ...], tflite: str, numpy: str) -> _Engine:
    if not tflite:
        return _Engine(python, flags, missing=f"{python} has no tflite-runtime")
    if not numpy or int(numpy.partition(".")[0]) >= 2:
        return _Engine(python, flags, missing=f"{python} has NumPy {numpy or '(none)'}, and tflite-runtime needs NumPy < 2")
    return _Engine(python, flags, version=tflite)


def _mend(missing: str) -> str:
    return (
        f"the runtime 'tflite_runtime' does not work: {missing}. Make an environment for it with Python 3.9 to 3.11, "
        f"python -m venv DIR; DIR/bin/pip install tflite-runtime==2.14.0 'numpy<2', and set {PYTHON_VARIABLE}=DIR/bin/python"
    )
