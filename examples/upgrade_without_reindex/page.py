"""The picture of the story: the same queries in the same gallery, by yesterday's model and by today's."""

from __future__ import annotations

import base64
import json
from html import escape
from importlib.metadata import version
from pathlib import Path

from samespace.cloud.upgrades import read_report
from samespace.sdk.files import atomic_write
from samespace.sdk.page import document, table_html

__all__ = ["write_page"]

#: Queries that are shown of those that were mended, and of those that flipped.
MENDED, FLIPPED = 6, 3


def write_page(output: Path) -> None:
    """``index.html`` of a finished story."""
    hits = {name: json.loads((output / f"{name}.json").read_text()) for name in ("before", "after")}
    first = {name: {query: _label(row[0]) == _label(query) for query, row in found.items()} for name, found in hits.items()}
    mended = [query for query in first["before"] if first["after"][query] and not first["before"][query]]
    flipped = [query for query in first["before"] if first["before"][query] and not first["after"][query]]
    report, photos = read_report((output / "upgrade.json").read_bytes()), output / "photos"
    count = {name: sum(right.values()) for name, right in first.items()}
    n = len(first["before"])
    body = [
        f"<p>First hit right: <b>{count['before']}</b> of {n} queries before, <b>{count['after']}</b> after; {len(mended)} "
        f"were mended, {len(flipped)} flipped. Images embedded again: <b>0</b>.</p>",
        f"<h3>Mended, {min(MENDED, len(mended))} of {len(mended)}</h3>",
        *(_row(query, hits, photos) for query in _spread(mended, MENDED)),
        f"<h3>Flipped, {min(FLIPPED, len(flipped))} of {len(flipped)}</h3>",
        *(_row(query, hits, photos) for query in _spread(flipped, FLIPPED)),
        "<h3>mAP, query model down, gallery model across</h3>",
        table_html(
            ("", *(one.name for one in report.generations)),
            [
                f"<tr><td>{escape(one.name)}</td>" + "".join(f"<td>{100 * value:.1f}</td>" for value in row) + "</tr>"
                for one, row in zip(report.generations, report.table("map"), strict=True)
            ],
        ),
        '<p>The <a href="report.html">whole report</a> has intervals, slices, thresholds and every flip.</p>',
    ]
    page = document(
        title="An upgrade without re-indexing",
        heading="The same gallery, yesterday and today",
        about=f"{n} queries in a gallery of {report.gallery} pictures that {report.old.name} embedded; all classes are unseen",
        body="\n".join(body),
        version=version("samespace"),
    )
    atomic_write(output / "index.html", page)


def _row(query: str, hits: dict[str, dict[str, list[str]]], photos: Path) -> str:
    """A query, and what either model finds first; green frames are right."""
    cells = [_image(photos / "query" / query, "black")]
    for name in ("before", "after"):
        cells.append(f'<span style="margin:0 .6em 0 1.4em">{name}</span>')
        cells += [
            _image(photos / "gallery" / hit, "#2a2" if _label(hit) == _label(query) else "#c33") for hit in hits[name][query]
        ]
    return f'<p style="white-space:nowrap;overflow-x:auto">{"".join(cells)}</p>'


def _image(path: Path, colour: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    style = f"border:3px solid {colour};border-radius:6px;margin:2px;vertical-align:middle;background:white"
    return f'<img width="48" height="48" alt="{escape(path.parent.name)}" style="{style}" src="data:image/png;base64,{data}">'


def _spread(queries: list[str], most: int) -> list[str]:
    """Up to so many, evenly from the list: not the best ones."""
    step = max(1, len(queries) // most)
    return queries[::step][:most]


def _label(path: str) -> str:
    return Path(path).parent.name
