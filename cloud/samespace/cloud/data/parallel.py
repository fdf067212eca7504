"""Threads with a progress bar, for work that releases the GIL or waits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

from samespace.sdk.cli.progress import Bar, progress

__all__ = ["default_workers", "for_each", "shown"]


def default_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_each(count: int, work: Callable[[int], None], *, workers: int, bar: Bar) -> None:
    """Call ``work(0)`` … ``work(count - 1)`` in threads; the first error ends it, and what has not begun is dropped."""
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for future in as_completed([pool.submit(work, index) for index in range(count)]):
            future.result()
            bar.advance(1)
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def shown(title: str, total: int, show: bool) -> Iterator[Bar]:
    """The usual progress bar, or none."""
    if not show:
        yield _Silent()
        return
    with progress(title, total) as bar:
        yield bar


class _Silent:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass
