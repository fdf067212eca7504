"""Progress for long work: a bar on a terminal, a plain line now and then elsewhere (CI logs, files)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

__all__ = ["Bar", "progress"]

#: Seconds between two plain lines where there is no terminal.
_PLAIN_INTERVAL = 10.0


class Bar(Protocol):
    """What the body of :func:`progress` gets."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that ``steps`` more are done; ``note`` (a loss, a file name) is shown beside them."""
        ...


@contextmanager
def progress(title: str, total: int) -> Iterator[Bar]:
    """Show progress of ``total`` steps on stderr, so that stdout stays clean for results."""
    console = Console(stderr=True)
    if not console.is_terminal:
        bar = _Lines(title, total)
        yield bar
        bar.finish()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=console) as rich_progress:
        yield _Rich(rich_progress, title, total)


class _Rich:
    def __init__(self, rich_progress: RichProgress, title: str, total: int) -> None:
        self._progress = rich_progress
        self._task = rich_progress.add_task(title, total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=steps, note=note)


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._start = self._last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        if time.monotonic() - self._last >= _PLAIN_INTERVAL:
            self._last = time.monotonic()
            self._print(note)

    def finish(self) -> None:
        self._print(f"in {time.monotonic() - self._start:.1f} s")

    def _print(self, note: str) -> None:
        print(f"{self._title}: {self._done}/{self._total} {note}".rstrip(), file=sys.stderr, flush=True)
