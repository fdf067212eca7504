"""Ctrl-C and SIGTERM, turned into a question that the training loop asks after each step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupt", "interruptible"]


class Interrupt:
    """The signal that was received, if any."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def raise_for(self, message: str) -> None:
        """Leave as the signal wants: KeyboardInterrupt for Ctrl-C, SystemExit(143) for SIGTERM, with the message."""
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(message)


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Note SIGINT and SIGTERM instead of dying of them; a second Ctrl-C acts at once.

    Outside the main thread, where Python allows no handlers, signals act as they always do.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.received = interrupt.received or signal.Signals(number)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
