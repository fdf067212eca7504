"""The child process of :mod:`samespace.sdk.runtimes.executorch`: runs one ``.pte`` program, with torch and executorch.

samespace is not installed where it runs. Questions (see :mod:`samespace.sdk.runtimes.child_frames`): ``{"do": "open"}`` with
the program, answered ``{"inputs": [{"shape", "dtype"}], "outputs": COUNT}``; ``{"do": "run", "shape", "dtype"}`` with a tensor,
answered ``{"shape"}`` with the output (little endian float32).
"""

from __future__ import annotations

import importlib
import runpy
import sys
from typing import Any

#: ExecuTorch's numbers of types -> NumPy's names.
_TYPES = {0: "uint8", 1: "int8", 6: "float32"}
_opened: dict[str, Any] = {}


def answer(question: Any, parts: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Open a program, or run it."""
    return _open(parts[0]) if question["do"] == "open" else _run(question, parts[0])


def _open(program: bytes) -> tuple[dict[str, Any], list[bytes]]:
    from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports] - of another environment

    _opened["bytes"] = program  # it is read where it lies
    _opened["program"] = Runtime.get().load_program(program)
    method = _opened["method"] = _opened["program"].load_method("forward")
    about = method.metadata
    inputs = [about.input_tensor_meta(index) for index in range(about.num_inputs())]
    told = [{"shape": list(one.sizes()), "dtype": _TYPES.get(int(one.dtype()), str(one.dtype()))} for one in inputs]
    return {"inputs": told, "outputs": about.num_outputs()}, []


def _run(question: Any, data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    import numpy as np

    torch = importlib.import_module("torch")  # the engine's own tensors; samespace.sdk itself never imports it
    tensor = torch.from_numpy(np.frombuffer(data, question["dtype"]).reshape(question["shape"]).copy())
    rows = _opened["method"].execute([tensor])[0].numpy()
    if rows.dtype != np.float32:
        raise TypeError(f"the output is {rows.dtype}, not float32")
    return {"shape": list(rows.shape)}, [rows.astype("<f4").tobytes()]


if __name__ == "__main__":
    runpy.run_path(sys.argv[1])["serve"](answer)
