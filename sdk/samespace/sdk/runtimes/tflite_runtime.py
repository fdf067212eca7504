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

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.isolation import Limits
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.child import ChildFailed, ChildRefused, OtherPython, ServingChild
from samespace.sdk.runtimes.tensors import as_input
from samespace.sdk.runtimes.tflite import check_interface

__all__ = ["TFLITE", "OldTfliteRuntime"]


def _unfit(versions: Mapping[str, str]) -> str:
    numpy = versions["numpy"]
    return f"has NumPy {numpy}, and tflite-runtime needs NumPy < 2" if int(numpy.partition(".")[0]) >= 2 else ""


TFLITE = OtherPython(
    variable="SAMESPACE_TFLITE_PYTHON",
    packages=("tflite-runtime", "numpy"),
    purpose="the runtime 'tflite_runtime'",
    recipe="Python 3.9 to 3.11, python -m venv DIR; DIR/bin/pip install tflite-runtime==2.14.0 'numpy<2'",
    here=True,
    unfit=_unfit,
)

_SCRIPT = Path(__file__).with_name("tflite_child.py")


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
        self._child = ServingChild(TFLITE.command(_SCRIPT))
        try:
            check_interface(artifact.spec, *self._open())
        except BaseException:
            self.close()
            raise

    @classmethod
    def unavailable(cls) -> str | None:
        return TFLITE.missing()

    @classmethod
    def version(cls) -> str:
        return f"tflite-runtime {found}" if (found := TFLITE.version()) else "unknown"

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        what, tensor = f"a batch of {len(images)}", as_input(images, self.artifact.spec.input)
        question = {"do": "run", "shape": tensor.shape, "dtype": tensor.dtype.name}
        # A model of another width than it should have is reported by the base class; nothing is allocated for absurd ones.
        most = 64 * len(images) * max(1, self.artifact.dim) + (1 << 20)
        try:
            answer, (rows,) = self._child.ask(question, [tensor.data.cast("B")], seconds=self.run_seconds, most=most)
            return np.frombuffer(rows, "<f4").reshape(answer["shape"]).astype(np.float32)
        except ChildRefused as error:
            raise self._refusal(f"failed on {what}", error) from None
        except (ChildFailed, ValueError, KeyError, TypeError) as error:
            raise self._failure(what, error) from None

    def close(self) -> None:
        """End the child; the runtime cannot be used afterwards."""
        self._child.close()

    def _open(self) -> tuple[list[str], int]:
        memory = Limits.fitting(self.artifact).memory_bytes
        question = {"do": "open", "threads": self.options.threads, "optimise": self.options.optimise, "memory": memory}
        try:
            answer, _ = self._child.ask(question, [self.artifact.single_file], seconds=self.open_seconds)
            return [str(dtype) for dtype in answer["inputs"]], int(answer["outputs"])
        except ChildRefused as error:
            raise self._refusal("refuses it", error) from None
        except (ChildFailed, ValueError, KeyError, TypeError) as error:
            raise self._failure("opening it", error) from None

    def _refusal(self, what: str, error: Exception) -> RuntimeFailure:
        """The child can go on."""
        return RuntimeFailure(f"{self.artifact.spec.path}: tflite-runtime: the TFLite interpreter {what}: {error}")

    def _failure(self, what: str, error: Exception) -> RuntimeFailure:
        self.close()
        return RuntimeFailure(
            f"{self.artifact.spec.path}: tflite-runtime failed on {what}: {error}; the file is damaged, or this old "
            "interpreter cannot run it: try the runtime 'tflite' (LiteRT)"
        )
