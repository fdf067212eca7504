"""What a client needs done, as values: so that the blocking client and the asynchronous one are one piece of logic.

An operation is a generator: it yields a step, gets its result (or its error, raised at that line), and returns the operation's
result. It never waits, sends or sleeps itself. :class:`Runner` does the steps one after the other; the asynchronous client
has a runner of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

__all__ = ["Pause", "Runner", "Send", "Step", "Steps", "Turn", "Work"]

T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """An HTTP request; gives an ``httpx.Response``, raises ``httpx.TransportError``."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes | None


@dataclass(frozen=True)
class Pause:
    """Nothing, for some seconds."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Something that blocks: embedding, files, the caller's own iterators; gives and raises what ``do`` does."""

    do: Callable[[], Any]


@dataclass(frozen=True)
class Turn:
    """Wait until nobody else of this client has the turn, and take it; or give it back."""

    taken: bool


Step = Send | Pause | Work | Turn
Steps = Generator[Step, Any, T]


class Runner:
    """Does the steps of operations in the caller's thread; several threads may share it.

    Args:
        http: sends the requests; closed with the runner.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._turn = threading.Lock()

    def run(self, steps: Steps[T]) -> T:
        """Do all steps of an operation; returns and raises what it does."""
        try:
            step = next(steps)
            while True:
                try:
                    result = self._done(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            return end.value

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _done(self, step: Step) -> Any:
        match step:
            case Send(method, url, headers, content):
                return self._http.request(method, url, content=content, headers=headers)
            case Pause(seconds):
                return time.sleep(seconds)
            case Work(do):
                return do()
            case Turn(taken):
                return self._turn.acquire() if taken else self._turn.release()
