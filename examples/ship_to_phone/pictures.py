"""The two pictures of the demo's page: a contact sheet and the training curves."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Hit", "SheetRow", "contact_sheet", "png_bytes", "training_curves"]

_CELL, _GAP, _FRAME, _HEAD = 64, 12, 4, 34
_RIGHT, _WRONG, _INK, _SOFT = (26, 127, 55), (214, 214, 214), (30, 30, 30), (110, 110, 110)


@dataclass(frozen=True)
class Hit:
    """One answer of a search: a picture and whether it is of the query's class."""

    image: Image.Image
    right: bool


@dataclass(frozen=True)
class SheetRow:
    """A query, the exported edge model's hits, and the control's."""

    query: Image.Image
    edge: Sequence[Hit]
    control: Sequence[Hit]


def contact_sheet(rows: Sequence[SheetRow], columns: int = 2) -> Image.Image:
    """Draw ``rows`` in ``columns`` blocks: query | edge model's hits | control's hits, right hits framed in green."""
    step = _CELL + _GAP
    hits = len(rows[0].edge)
    block = step * (1 + 2 * hits) + 5 * _GAP
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (block * columns + _GAP, _HEAD + lines * step + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=18)
    for column in range(columns):
        left = column * block + _GAP
        for x, text in (
            (left, "query"),
            (left + step + 2 * _GAP, "exported phone model"),
            (left + step * (1 + hits) + 4 * _GAP, "independent control"),
        ):
            draw.text((x, 8), text, fill=_SOFT if x == left else _INK, font=font)
    for index, row in enumerate(rows):
        left, top = (index // lines) * block + _GAP, _HEAD + (index % lines) * step
        sheet.paste(_cell(row.query), (left, top))
        for offset, found in ((step + 2 * _GAP, row.edge), (step * (1 + hits) + 4 * _GAP, row.control)):
            for place, hit in enumerate(found):
                x = left + offset + place * step
                sheet.paste(_cell(hit.image), (x, top))
                outline, width = (_RIGHT, _FRAME) if hit.right else (_WRONG, 1)
                draw.rectangle((x - 2, top - 2, x + _CELL + 1, top + _CELL + 1), outline=outline, width=width)
    return sheet


def training_curves(log: Path) -> bytes:
    """Plot every loss in a run's JSONL log against the step; returns PNG bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    series: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        for tier, terms in entry.get("losses", {}).items():
            for term, value in terms.items():
                series[tier][term].append((entry["step"], value))
    figure, axes = pyplot.subplots(1, len(series), figsize=(3.2 * len(series), 2.9), squeeze=False, layout="constrained")
    for axis, (tier, terms) in zip(axes[0], series.items(), strict=True):
        for term, points in terms.items():
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, label=term.replace("_", " "), linewidth=1.2)
        axis.set(title=tier, xlabel="step", yscale="log")
        axis.legend(fontsize=7, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("loss")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def png_bytes(image: Image.Image) -> bytes:
    """Encode as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _cell(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((_CELL, _CELL), Image.Resampling.LANCZOS)
