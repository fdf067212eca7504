"""The matrix for people: a table on a terminal, aligned plain text elsewhere, and a grid for the head of a page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape as marked
from rich.table import Table
from rich.text import Text

from samespace.sdk.check.gate import Outcome, Verdict
from samespace.sdk.check.matrix import Cell, Matrix, counted
from samespace.sdk.check.render import suspects
from samespace.sdk.check.report import CompatibilityReport

__all__ = ["matrix_html", "matrix_notes", "matrix_plain", "matrix_table"]

_HEADINGS = ("artifact", "device", "runtime", "worst-1 % cosine", "top-10 kept", "M(q, g)", "1 - cosine to host", "verdict")
_COLOURS: dict[Outcome, str] = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
_Checks = Sequence[tuple[CompatibilityReport, Verdict]]


def matrix_plain(matrix: Matrix, checks: _Checks) -> str:
    """The whole matrix as text without colours."""
    lines = [_HEADINGS, *(_row(cell) for cell in matrix.cells)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([_title(matrix), "", *body, "", *matrix_notes(matrix, checks), matrix_foot(matrix)])


def matrix_table(matrix: Matrix, checks: _Checks) -> Group:
    """The same for a terminal."""
    grid = Table(*_HEADINGS, box=SIMPLE_HEAD)
    before = ""
    for cell in matrix.cells:
        if before and cell.artifact != before:
            grid.add_section()
        artifact, *more, verdict = (marked(text) for text in _row(cell))
        colour = _COLOURS[_outcome(cell)] if cell.state != "no runtime" else "dim"
        grid.add_row(artifact if cell.artifact != before else "", *more, f"[{colour}]{verdict}[/]")
        before = cell.artifact
    notes = [Text(note) for note in matrix_notes(matrix, checks)]
    return Group(Text(_title(matrix), style="bold"), grid, *notes, Text(matrix_foot(matrix), style=_COLOURS[matrix.outcome]))


def matrix_notes(matrix: Matrix, checks: _Checks) -> list[str]:
    """A line for each thing that did not pass or is worth knowing; the same thing on several devices is one line."""
    lines: dict[tuple[str, str, str], list[str]] = {}

    def note(mark: str, what: str, where: str, text: str) -> None:
        places = lines.setdefault((mark, what, text), [])
        if where not in places:
            places.append(where)

    for cell in matrix.cells:
        if cell.state == "failed":
            note("FAILED", f"{cell.artifact} in {cell.runtime}" if cell.runtime else "", cell.device, cell.why)
        elif cell.check is not None and cell.outcome != "pass":
            report, verdict = checks[cell.check]
            what = f"{cell.artifact} in {cell.runtime}"
            first, *more = verdict.reasons
            rest = f" (and {len(more)} more: see --html or --json)" if more else ""
            note(verdict.outcome.upper(), what, cell.device, first + rest)
            for line in suspects(report):
                note(verdict.outcome.upper(), what, cell.device, line)
    for cell in matrix.cells:
        if cell.host is not None and not cell.host.within:
            note("differs", f"{cell.artifact} in {cell.runtime}", cell.device, f"from this host by {cell.host.text()}")
    if matrix.host_failed:
        note("not compared", "this host", "", f"no difference to it is told: {matrix.host_failed}")
    for cell in matrix.cells:
        if cell.state == "no runtime":
            note("not checked", cell.artifact, cell.device, cell.why)
    return [
        f"{mark}  {' on '.join(filter(None, [what, ', '.join(places)]))}: {text}"
        for (mark, what, text), places in lines.items()
    ]


def matrix_foot(matrix: Matrix) -> str:
    """The last line."""
    empty = f"; nothing was checked on {', '.join(matrix.empty)}" if matrix.empty else ""
    return f"{matrix.outcome.upper()}: {counted(matrix.cells)}{empty}"


def matrix_html(matrix: Matrix) -> str:
    """Artifacts down, devices across; each cell leads to its check on the same page."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in ("artifact", *matrix.devices))
    lines = []
    for artifact in matrix.artifacts:
        row = [[cell for cell in matrix.cells if (cell.artifact, cell.device) == (artifact, name)] for name in matrix.devices]
        cells = "".join(f"<td>{'<hr>'.join(_box(cell) for cell in found)}</td>" for found in row)
        lines.append(f"<tr><td><b>{escape(artifact)}</b></td>{cells}</tr>")
    return (
        '<h3>Devices</h3><p class="soft">worst-1 % cosine to the fp32 reference, neighbours kept of the 10 nearest, M(q, g): '
        "recall@1 of the device's queries in the cloud's gallery, and the largest 1 - cosine to the machine that checked. "
        "Nothing here is a latency.</p>"
        f'<div class="scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _box(cell: Cell) -> str:
    if cell.state == "no runtime":
        return f'<span class="soft">{escape(cell.why)}</span>'
    if cell.state == "failed":
        return f'<span class="outcome fail">device failed</span><br><span class="soft">{escape(cell.why)}</span>'
    outcome = _outcome(cell)
    lines = [f'<a href="#check-{cell.check}"><span class="outcome {outcome}">{outcome}</span></a> {escape(cell.runtime)}']
    if cell.why:
        lines.append(escape(cell.why))
    else:
        _, _, _, cosine, kept, recall, _, _ = _row(cell)
        lines.append(f"{escape(cosine)} · {escape(kept)} · {escape(recall)}")
    if cell.diagnosis:
        lines.append(f"diagnosis: {escape(', '.join(cell.diagnosis))}")
    if cell.host is not None:
        lines.append(f'<span class="soft">to host: {escape(cell.host.text())}</span>')
    if cell.embeddings_sha256:
        lines.append(f'<span class="soft">embeddings <code>{cell.embeddings_sha256[:12]}</code></span>')
    return "<br>".join(lines)


def _outcome(cell: Cell) -> Outcome:
    return cell.outcome or "fail"


def _row(cell: Cell) -> tuple[str, ...]:
    host = "" if cell.host is None else f"{cell.host.largest:.1e}"
    if cell.host is not None and not cell.host.within:
        host += {"device": " device left", "host": " host left", "both": " differs"}[cell.host.left or "both"]
    if cell.state != "measured":
        return (
            cell.artifact,
            cell.device,
            cell.runtime,
            "",
            "",
            "",
            "",
            "no runtime" if cell.state == "no runtime" else "FAILED",
        )
    return (
        cell.artifact,
        cell.device,
        cell.runtime,
        "-" if cell.worst_cosine is None else f"{cell.worst_cosine:.7f}",
        "-" if cell.overlap is None else f"{100 * cell.overlap:.1f} %",
        "-" if cell.recall is None else f"{100 * cell.recall:.1f} %",
        host,
        _outcome(cell) + (f" ({', '.join(cell.diagnosis)})" if cell.diagnosis else ""),
    )


def _title(matrix: Matrix) -> str:
    return f"{matrix.model} ({matrix.model_id}) on {', '.join(matrix.devices)}"
