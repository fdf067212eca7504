"""The child's side of :mod:`samespace.sdk.runtimes.child`: a loop of questions and answers over the standard streams.

It runs in an environment where samespace is not installed, so it imports nothing of ours; a script there gets it by
``runpy.run_path(sys.argv[1])["serve"]``. A question or an answer is one JSON object and the byte strings whose lengths its key
``bytes`` lists; each goes in a frame with its length before it (eight bytes, big endian).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

__all__ = ["serve"]

#: A question and its byte strings -> the answer and its own.
Answer = Callable[[Any, "list[bytes]"], "tuple[dict[str, Any], list[bytes]]"]


def serve(answer: Answer) -> None:
    """Answer questions until the parent closes its pipe; an exception becomes ``{"error": TEXT}``.

    What libraries print on standard output goes to standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to judge
    from_parent, to_parent = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    while True:
        try:
            question = json.loads(_read(from_parent))
            given = [_read(from_parent) for _ in question["bytes"]]
        except EOFError:
            return
        try:
            told, parts = answer(question, given)
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            told, parts = {"error": (" ".join(str(error).split()) or type(error).__name__)[:1000]}, []
        _write(to_parent, json.dumps({**told, "bytes": [len(part) for part in parts]}).encode())
        for part in parts:
            _write(to_parent, part)
        to_parent.flush()


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
