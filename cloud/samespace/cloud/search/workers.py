"""Who evaluates: this process (an accelerator, or one core), or one child process a core, each with one thread.

A child gets one architecture at a time and answers with a line of JSON. What crashes it, however hard, is known: the
architecture it was at. That one is reported as failed, and a new child goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from samespace.cloud.search.evaluate import Evaluator
from samespace.edge.search import Architecture

__all__ = ["Children", "Here", "Operation", "Workers", "answer"]

Operation = Literal["evaluate", "proxy"]
#: Called with the index of an architecture and its answer, from any thread, as soon as it is there.
Done = Callable[[int, dict[str, Any]], None]


class Workers(Protocol):
    """Answers for architectures: the fields of ``Worth``, or ``{"value": proxy}``, or ``{"error": why there is none}``."""

    def run(self, operation: Operation, architectures: Sequence[Architecture], done: Done) -> None:
        """Ask for all; the answers go to ``done``, in any order."""
        ...


def answer(evaluator: Evaluator, operation: Operation, architecture: Architecture) -> dict[str, Any]:
    """The answer of one evaluator; whatever goes wrong with the architecture is an answer, too."""
    try:
        if operation == "proxy":
            return {"value": evaluator.proxy(architecture)}
        return asdict(evaluator.evaluate(architecture))
    except Exception as error:  # the search goes on without it
        return {"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]}


class Here:
    """One after the other in this process. On a CPU with one thread, so that sums come out as they do in a child."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def run(self, operation: Operation, architectures: Sequence[Architecture], done: Done) -> None:
        with _one_thread(self._evaluator.device):
            for index, architecture in enumerate(architectures):
                done(index, answer(self._evaluator, operation, architecture))


class Children:
    """Child processes, which are kept until the block is left.

    Args:
        count: how many.
        command: that starts one; it reads requests as lines of JSON and answers each with a line on its standard output.
    """

    def __init__(self, count: int, command: Sequence[str]) -> None:
        self._count, self._command = count, list(command)
        self._idle: list[subprocess.Popen[str]] = []
        self._all: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._closed = False
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the children

    @classmethod
    def of_supernet(cls, count: int, weights: Path, pictures: Path, about: dict[str, Any]) -> Children:
        """Children that evaluate: each loads the supernet and the pictures once."""
        job = json.dumps({"weights": str(weights), "pictures": str(pictures), **about})
        return cls(count, [sys.executable, "-P", "-m", "samespace.cloud.search.worker", job])

    def run(self, operation: Operation, architectures: Sequence[Architecture], done: Done) -> None:
        def one(index: int) -> None:
            request = {"operation": operation, "architecture": architectures[index].model_dump(mode="json")}
            done(index, self._ask(json.dumps(request)))

        pool = ThreadPoolExecutor(self._count)
        try:
            futures = [pool.submit(one, index) for index in range(len(architectures))]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            self.close()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """End all children."""
        with self._lock:
            self._closed = True
            for child in self._all:
                if child.poll() is None:
                    child.kill()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        for child in self._all:
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream:
                    stream.close()
        self._log.close()

    def _ask(self, request: str) -> dict[str, Any]:
        with self._lock:
            child = self._idle.pop() if self._idle else self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(request + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except (BrokenPipeError, ValueError):  # it died, or the search was stopped
            line = ""
        if line:
            with self._lock:
                self._idle.append(child)
            return json.loads(line)
        code = child.wait()
        if self._closed:
            raise RuntimeError("the search was stopped")
        return {"error": f"the process that evaluated it ended with exit code {code}{self._said()}"}

    def _start(self) -> subprocess.Popen[str]:
        if self._closed:
            raise RuntimeError("the search was stopped")
        environment = os.environ | {
            # What this process can import, the child can; but not what lies in the folder it was started from.
            "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry),
            "OMP_NUM_THREADS": "1",
        }
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children
        )
        self._all.append(child)
        return child

    def _said(self) -> str:
        """The last line that a child wrote on standard error."""
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ""


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
