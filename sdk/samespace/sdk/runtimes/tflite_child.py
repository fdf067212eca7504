"""The child process of :mod:`samespace.sdk.runtimes.tflite_runtime`: runs one ``.tflite`` model by tflite-runtime.

It runs in an environment where samespace is not installed, perhaps in an older Python (3.9), so it imports nothing of ours and
uses no newer syntax. Questions (see :mod:`samespace.sdk.runtimes.child_frames`): ``{"do": "open", "threads", "optimise",
"memory"}`` with the model, answered ``{"inputs": [dtypes], "outputs": COUNT}``; ``{"do": "run", "shape", "dtype"}`` with a
tensor, answered ``{"shape"}`` with the output (little endian float32).
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

_opened: dict[str, Any] = {}


def answer(question: Any, parts: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Open a model, or run it."""
    if question["do"] == "open":
        _limit(question["memory"])
        interpreter = _opened["interpreter"] = _open(parts[0], question)
        entrances = _opened["entrances"] = interpreter.get_input_details()
        exits = _opened["exits"] = interpreter.get_output_details()
        return {"inputs": [entrance["dtype"].__name__ for entrance in entrances], "outputs": len(exits)}, []
    # Taken out, so that after a failure the next batch lays out memory anew.
    last_shape = _opened.pop("shape", None)
    entrance, exit_ = _opened["entrances"][0]["index"], _opened["exits"][0]["index"]
    rows = _run(_opened["interpreter"], entrance, exit_, question, parts[0], last_shape)
    _opened["shape"] = question["shape"]
    return {"shape": list(rows.shape)}, [rows.astype("<f4").tobytes()]


def _open(model: bytes, request: Any) -> Any:
    from tflite_runtime import interpreter as tflite  # pyright: ignore[reportMissingImports] - of another environment

    more = {}
    if not request["optimise"]:
        more["experimental_op_resolver_type"] = tflite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return tflite.Interpreter(model_content=model, num_threads=request["threads"] or None, **more)


def _run(interpreter: Any, entrance: int, exit_: int, batch: Any, data: bytes, last_shape: Any) -> Any:
    import numpy as np

    if batch["shape"] != last_shape:
        interpreter.resize_tensor_input(entrance, batch["shape"])
        interpreter.allocate_tensors()
    interpreter.set_tensor(entrance, np.frombuffer(data, batch["dtype"]).reshape(batch["shape"]))
    interpreter.invoke()
    rows = interpreter.get_tensor(exit_)
    if rows.dtype != np.float32:
        raise TypeError(f"the output is {rows.dtype}, not float32")
    return rows


def _limit(memory: int) -> None:
    """Bytes of address space that it may use: damaged files ask for all there is. Not on Windows; macOS refuses."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    except (ImportError, ValueError, OSError):
        pass


if __name__ == "__main__":
    runpy.run_path(sys.argv[1])["serve"](answer)
