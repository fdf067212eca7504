"""The child process of :mod:`samespace.sdk.runtimes.tflite_runtime`: ``python tflite_child.py``, with tflite-runtime and NumPy.

It runs in an environment where samespace is not installed, perhaps in an older Python (3.9), so it imports nothing of ours and
uses no newer syntax. It speaks in frames over its standard streams, each with its length before it (eight bytes, big endian).
The parent sends one JSON object ``{"threads", "optimise", "memory"}`` and the model; the child answers ``{"ok": true, "inputs":
[dtypes], "outputs": count}``. Then for each batch the parent sends ``{"shape", "dtype"}`` and the tensor; the child answers
``{"ok": true, "shape"}`` and the output (little endian float32). Instead of ``{"ok": true}`` it may answer ``{"error": TEXT}``.
It ends when the parent closes its pipe.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, BinaryIO


def main() -> None:
    """Open one model and run batches until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to judge
    from_parent, to_parent = _take_streams()
    request = json.loads(_read(from_parent))
    model = _read(from_parent)
    _limit(request["memory"])
    try:
        interpreter = _open(model, request)
        entrances, exits = interpreter.get_input_details(), interpreter.get_output_details()
        dtypes = [entrance["dtype"].__name__ for entrance in entrances]
        _write(to_parent, json.dumps({"ok": True, "inputs": dtypes, "outputs": len(exits)}).encode())
        to_parent.flush()
    except Exception as error:
        _refuse(to_parent, error)
        return
    shape: Any = None
    while True:
        try:
            batch = json.loads(_read(from_parent))
        except EOFError:
            return
        data = _read(from_parent)
        try:
            rows = _run(interpreter, entrances[0]["index"], exits[0]["index"], batch, data, shape)
        except Exception as error:
            shape = None
            _refuse(to_parent, error)
            continue
        shape = batch["shape"]
        _write(to_parent, json.dumps({"ok": True, "shape": list(rows.shape)}).encode())
        _write(to_parent, rows.astype("<f4").tobytes())
        to_parent.flush()


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


def _refuse(to_parent: BinaryIO, error: Exception) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    _write(to_parent, json.dumps({"error": text[:1000]}).encode())
    to_parent.flush()


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes of the protocol; what a library prints on standard output then goes to standard error."""
    from_parent, to_parent = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return from_parent, to_parent


def _read(stream: BinaryIO) -> bytes:
    return _exactly(stream, int.from_bytes(_exactly(stream, 8), "big"))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _write(stream: BinaryIO, data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)


if __name__ == "__main__":
    main()
