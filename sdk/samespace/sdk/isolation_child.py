"""The child process of :mod:`samespace.sdk.isolation`: ``python -m samespace.sdk.isolation_child``.

It speaks in frames over its standard streams, each with its length before it (eight bytes, big endian). The parent sends one
JSON object and the artifact's files, then for each batch one JSON object and the images; the child answers ``{"ok": true}`` and
the embeddings (little endian float32), or ``{"error": ...}``, after which it ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from samespace.sdk.errors import ConfigError
from samespace.sdk.manifest import Artifact
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions

__all__ = ["main", "read_bytes", "read_json", "write_bytes", "write_json"]

_MAX_JSON = 1 << 20


def write_bytes(stream: BinaryIO, data: bytes | memoryview) -> None:
    """Write one frame (no flush)."""
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)


def write_json(stream: BinaryIO, value: Any) -> None:
    """Write one frame of JSON (no flush)."""
    write_bytes(stream, json.dumps(value).encode())


def read_bytes(stream: BinaryIO, size: int) -> bytes:
    """Read one frame that must have ``size`` bytes.

    Raises:
        EOFError: the other side has gone.
        ValueError: the frame has another length.
    """
    found = int.from_bytes(_exactly(stream, 8), "big")
    if found != size:
        raise ValueError(f"a frame of {found} bytes where one of {size} belongs")
    return _exactly(stream, size)


def read_json(stream: BinaryIO) -> Any:
    """Read one frame of JSON, of at most 1 MiB.

    Raises:
        EOFError: the other side has gone.
        ValueError: it is too long, or no JSON.
    """
    size = int.from_bytes(_exactly(stream, 8), "big")
    if size > _MAX_JSON:
        raise ValueError(f"a JSON frame of {size} bytes")
    try:
        return json.loads(_exactly(stream, size))
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def main() -> None:
    """Open one artifact and run batches until the parent closes the pipe."""
    from_parent, to_parent = _take_streams()
    request = read_json(from_parent)
    _limit(request["limits"])
    try:
        runtime = _open(request, from_parent)
        write_json(to_parent, {"ok": True})
        to_parent.flush()
        while True:
            try:
                shape = tuple(read_json(from_parent)["shape"])
            except EOFError:
                break
            images = np.frombuffer(read_bytes(from_parent, int(np.prod(shape))), np.uint8).reshape(shape)
            rows = runtime.run(images)
            write_json(to_parent, {"ok": True})
            write_bytes(to_parent, np.ascontiguousarray(rows, "<f4").tobytes())
            to_parent.flush()
    except Exception as error:
        text = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            text = f"{request['spec']['path']}: out of memory, at {request['limits']['memory_bytes']} bytes of address space"
        write_json(to_parent, {"error": text[:4000], "config": isinstance(error, ConfigError)})
        to_parent.flush()


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes of the protocol; what a library prints on standard output then goes to standard error."""
    from_parent, to_parent = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return from_parent, to_parent


def _limit(limits: Mapping[str, int]) -> None:
    if sys.platform == "win32":
        return
    import resource

    wanted = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_CORE: 0,
    }
    for what, value in wanted.items():
        _, hard = resource.getrlimit(what)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # macOS refuses to limit the address space; what can be limited is.
        with contextlib.suppress(ValueError, OSError):
            # Five seconds between SIGXCPU, which says what happened, and SIGKILL, which cannot be ignored.
            grace = 5 if what == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
            resource.setrlimit(what, (value, value + grace))


def _open(request: Mapping[str, Any], from_parent: BinaryIO) -> Runtime:
    # All is read before anything can fail: the parent is not to be left writing to a process that has gone.
    files = {path: read_bytes(from_parent, size) for path, size in request["files"].items()}
    module, _, attribute = request["target"].partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    artifact = LoadedArtifact(Artifact.model_validate(request["spec"]), files, size=request["size"], dim=request["dim"])
    return kind(artifact, RuntimeOptions(**request["options"]))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
