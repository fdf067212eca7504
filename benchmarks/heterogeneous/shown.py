"""How figures become text, tables become Markdown, and plots become files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paired import Figure

from samespace.sdk.files import atomic_write

__all__ = ["markdown", "saved", "text"]


def text(figure: Figure, scale: float = 100, digits: int = 1) -> str:
    """Value, interval and n."""
    return figure.estimate.text(scale, digits)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def saved(canvas: Any, path: Path) -> str:
    """Write a plot; its name."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    atomic_write(path, buffer.getvalue())
    return path.name
