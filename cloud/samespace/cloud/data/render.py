"""Many SVG pictures to pixels, in parallel processes.

The renderer holds the GIL, so threads alone would not help. The workers are plain child processes of a small script and not
a ``multiprocessing`` pool: that would import the caller's main module again (which a notebook or ``python -`` does not have)
or fork a process in which torch has threads.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import IO

import numpy as np
import numpy.typing as npt

from samespace.sdk.cli.progress import Bar
from samespace.sdk.errors import DataError, MissingExtraError

__all__ = ["Drawing", "render", "require_renderer"]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture to be rendered."""

    name: str  #: for error messages
    svg: str
    mirror: bool = False


def require_renderer() -> None:
    """Raise :class:`MissingExtraError` where resvg is not installed."""
    if importlib.util.find_spec("resvg_py") is None:
        raise MissingExtraError("train", "rendering the emoji")


def render(drawings: Sequence[Drawing], size: int, workers: int, bar: Bar) -> npt.NDArray[np.uint8]:
    """Render each drawing to ``(size, size)`` pixels on white.

    Returns:
        ``(n, size, size, 3)`` uint8 RGB, in the order of ``drawings``.

    Raises:
        DataError: a drawing cannot be rendered.
        MissingExtraError: no renderer is installed.
    """
    require_renderer()
    pixels = np.empty((len(drawings), size, size, 3), np.uint8)
    queue: SimpleQueue[int] = SimpleQueue()
    for index in range(len(drawings)):
        queue.put(index)
    lock = Lock()
    with ExitStack() as stack:
        processes = [stack.enter_context(_Worker()) for _ in range(max(1, min(workers, len(drawings))))]

        def serve(worker: _Worker) -> None:
            for index in _drain(queue):
                pixels[index] = worker.render(drawings[index], size)
                with lock:
                    bar.advance(1)

        # Threads only feed the processes; each owns one.
        with ThreadPoolExecutor(len(processes)) as threads:
            try:
                for future in [threads.submit(serve, worker) for worker in processes]:
                    future.result()
            finally:
                # After an error or Ctrl-C the other threads find nothing more to do.
                for _ in _drain(queue):
                    pass
    return pixels


class _Worker:
    """One child process."""

    def __enter__(self) -> _Worker:
        # -P: the script's folder stays off sys.path, where its neighbours would shadow other people's modules.
        command = [sys.executable, "-P", str(Path(__file__).with_name("render_worker.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            # A job that was never read cannot be flushed any more.
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def render(self, drawing: Drawing, size: int) -> npt.NDArray[np.uint8]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"svg": drawing.svg, "size": size, "mirror": drawing.mirror}
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
            failed = self._read(self._process.stdout, 1) == b"\1"
            if not failed:
                return np.frombuffer(self._read(self._process.stdout, size * size * 3), np.uint8).reshape(size, size, 3)
            reason = self._read(self._process.stdout, int.from_bytes(self._read(self._process.stdout, 4), "big")).decode()
        except (EOFError, OSError):
            reason = f"the renderer ended with exit code {self._process.wait()}"
        raise DataError(f"{drawing.name} cannot be rendered ({reason}): reinstall resvg-py, or clear the cached packages")

    @staticmethod
    def _read(pipe: IO[bytes], count: int) -> bytes:
        data = pipe.read(count)
        if len(data) != count:
            raise EOFError
        return data


def _drain(queue: SimpleQueue[int]) -> Iterator[int]:
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return
