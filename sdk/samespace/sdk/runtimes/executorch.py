"""ExecuTorch programs (``.pte``), by ExecuTorch's own runtime with XNNPACK, in a child process with an environment of its own.

executorch and the converters of the other formats do not fit into one environment. Make it one and say where:

    python -m venv DIR
    DIR/bin/pip install torch==2.13.0
    DIR/bin/pip install executorch==1.5.1
    export SAMESPACE_EXECUTORCH_PYTHON=DIR/bin/python

samespace need not be installed there. The exporter of this format uses the same environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.child import ChildFailed, ChildRefused, OtherPython, ServingChild
from samespace.sdk.runtimes.tensors import as_input

__all__ = ["EXECUTORCH", "ExecutorchRuntime"]

EXECUTORCH = OtherPython(
    variable="SAMESPACE_EXECUTORCH_PYTHON",
    packages=("executorch", "torch"),
    purpose="ExecuTorch",
    recipe="python -m venv DIR; DIR/bin/pip install torch==2.13.0; DIR/bin/pip install executorch==1.5.1",
)

_SCRIPT = Path(__file__).with_name("executorch_child.py")


class ExecutorchRuntime(Runtime):
    """Runs a ``.pte`` artifact; its batch is fixed. A crash of ExecuTorch is a RuntimeFailure.

    ``threads`` and ``optimise`` have no counterpart: the program was lowered for XNNPACK when it was exported.
    """

    name: ClassVar[str] = "executorch"
    format: ClassVar[str] = "executorch"
    packages: ClassVar[tuple[str, ...]] = ("executorch",)
    #: Wall-clock seconds to start the child and open the artifact, and for one batch.
    open_seconds: ClassVar[float] = 120.0
    run_seconds: ClassVar[float] = 120.0

    def __init__(self, artifact: LoadedArtifact, options: RuntimeOptions | None = None) -> None:
        super().__init__(artifact, options)
        self._child = ServingChild(EXECUTORCH.command(_SCRIPT))
        try:
            self._check(*self._open())
        except BaseException:
            self.close()
            raise

    @classmethod
    def unavailable(cls) -> str | None:
        return EXECUTORCH.missing()

    @classmethod
    def version(cls) -> str:
        return f"executorch {found}" if (found := EXECUTORCH.version()) else "unknown"

    def _infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        path, what = self.artifact.spec.path, f"on a batch of {len(images)}"
        tensor = as_input(images, self.artifact.spec.input)
        question = {"do": "run", "shape": tensor.shape, "dtype": tensor.dtype.name}
        # A model of another width than it should have is reported by the base class; nothing is allocated for absurd ones.
        most = 64 * len(images) * max(1, self.artifact.dim) + (1 << 20)
        try:
            answer, (rows,) = self._child.ask(question, [tensor.data.cast("B")], seconds=self.run_seconds, most=most)
            return np.frombuffer(rows, "<f4").reshape(answer["shape"]).astype(np.float32)
        except ChildRefused as error:
            raise RuntimeFailure(f"{path}: ExecuTorch failed {what}: {error}") from None
        except (ChildFailed, ValueError, KeyError, TypeError) as error:
            self.close()
            raise RuntimeFailure(f"{path}: ExecuTorch failed {what}: {error}") from None

    def close(self) -> None:
        """End the child; the runtime cannot be used afterwards."""
        self._child.close()

    def _open(self) -> tuple[list[dict[str, object]], int]:
        try:
            answer, _ = self._child.ask({"do": "open"}, [self.artifact.single_file], seconds=self.open_seconds)
            return [dict(one) for one in answer["inputs"]], int(answer["outputs"])
        except ChildRefused as error:
            raise RuntimeFailure(f"{self.artifact.spec.path}: ExecuTorch refuses it: {error}") from None
        except (ChildFailed, ValueError, KeyError, TypeError) as error:
            raise RuntimeFailure(
                f"{self.artifact.spec.path}: ExecuTorch cannot open it: {error}; the file is damaged, or for another version"
            ) from None

    def _check(self, inputs: list[dict[str, object]], outputs: int) -> None:
        spec = self.artifact.spec
        if len(inputs) != 1 or outputs != 1:
            raise RuntimeFailure(
                f"{spec.path}: expected one input and one output, it has {len(inputs)} and {outputs}; export it again"
            )
        if inputs[0].get("dtype") != spec.input.dtype:
            raise RuntimeFailure(
                f"{spec.path}: the input is {inputs[0].get('dtype')}, the manifest says {spec.input.dtype}; export it again"
            )
