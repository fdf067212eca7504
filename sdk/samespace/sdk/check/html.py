"""Reports and verdicts as one page (:mod:`samespace.sdk.page`).

All text goes through :func:`html.escape`, and pictures are data URIs that the report has checked: it may come from a stranger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib.metadata import version

from samespace.sdk.check.gate import Gate, Outcome, Verdict, worst_outcome
from samespace.sdk.check.matrix import Matrix, counted
from samespace.sdk.check.matrix_render import matrix_html
from samespace.sdk.check.render import HEADINGS, foot, rows, title
from samespace.sdk.check.report import Case, CompatibilityReport, Found
from samespace.sdk.page import document, outcome_html, table_html

__all__ = ["page"]

_SAID: dict[Outcome, str] = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive"}

#: Of the plot, in pixels, and the cosine distance at its lower edge: below, float32 itself ends.
_WIDTH, _HEIGHT, _LOWEST = 640, 150, 1e-7


def page(
    checks: Sequence[tuple[CompatibilityReport, Verdict]], gates: Sequence[Gate] | None = None, matrix: Matrix | None = None
) -> str:
    """The page of some checks, at least one.

    Args:
        checks: reports with their verdicts.
        gates: that judged them, for the limit in the plots; by default each report's own.
        matrix: of the devices that they are from; it takes the place of the list, and then there may be no check.
    """
    reports = [report for report, _ in checks]
    outcome = worst_outcome([verdict.outcome for _, verdict in checks]) if matrix is None else matrix.outcome
    passed = sum(verdict.outcome == "pass" for _, verdict in checks)
    models = ", ".join(dict.fromkeys(report.model for report in reports)) if matrix is None else matrix.model
    counts = f"{passed} of {len(checks)} checks passed" if matrix is None else counted(matrix.cells)
    bundles = ", ".join(dict.fromkeys(r.bundle for r in reports)) if matrix is None else matrix.bundle
    limits = gates or [Gate.of(report) for report in reports]
    listed = "\n".join(
        _check(at, report, verdict, gate) for at, ((report, verdict), gate) in enumerate(zip(checks, limits, strict=True))
    )
    overview = _overview(checks) if matrix is None else matrix_html(matrix)
    return document(
        title=f"{outcome}: {models}",
        heading=f'{escape(models)}: <span class="{outcome}">{_SAID[outcome]}</span>',
        about=f"{counts}. Bundle {bundles}",
        body=f"{overview}\n{listed}",
        version=reports[0].samespace if reports else version("samespace"),
    )


def _overview(checks: Sequence[tuple[CompatibilityReport, Verdict]]) -> str:
    lines = []
    for at, (report, verdict) in enumerate(checks):
        embedding, retrieval = report.embedding, report.retrieval
        recall = None if retrieval is None else retrieval.recall.get(1)
        cells = [
            f'<a href="#check-{at}">{escape(report.title)}</a>',
            outcome_html(verdict.outcome),
            "-" if report.tensor is None else f"{report.tensor.exact} of {report.tensor.n}",
            "-" if embedding is None else f"{embedding.worst_cosine:.6f}",
            "-" if retrieval is None else escape(retrieval.overlap.text()),
            "-" if retrieval is None or retrieval.hard is None else escape(retrieval.hard.overlap.text()),
            "-" if recall is None else escape(recall.difference.text()),
            escape(", ".join(suspect.name for suspect in (report.diagnosis or ())[:3])) or "-",
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = (
        "check",
        "outcome",
        "exact tensors",
        "worst-1 % cosine",
        "neighbours kept %",
        "of the hardest %",
        "R@1 less the reference's",
        "diagnosis",
    )
    return table_html(heads, lines)


def _check(at: int, report: CompatibilityReport, verdict: Verdict, gate: Gate) -> str:
    heading, *about = title(report)
    findings = "".join(
        f"<tr><td>{outcome_html(finding.outcome)}</td><td>{escape(finding.check)}</td><td>{escape(finding.message)}</td></tr>"
        for finding in verdict.findings
    )
    parts = [
        f"<h2>{escape(heading)}: {outcome_html(verdict.outcome)}</h2>",
        *(f'<div class="soft"><small>{escape(line)}</small></div>' for line in about),
        _diagnosis(report),
        "<h3>What was judged</h3>",
        f'<div class="scroll"><table>{findings}</table></div>',
        "<h3>The three layers</h3>",
        _layers(report),
        _plot(report, gate),
        _cases(report.cases),
        *(f'<div class="soft"><small>{escape(line)}</small></div>' for line in foot(report)[:1]),
        f'<div class="soft"><small>again with: <code>{escape(report.reproduce)}</code></small></div>'
        if report.reproduce
        else "",
    ]
    return f'<section class="{verdict.outcome}" id="check-{at}">' + "\n".join(filter(None, parts)) + "</section>"


def _diagnosis(report: CompatibilityReport) -> str:
    if report.diagnosis is None:
        return ""
    if not report.diagnosis:
        return '<h3>Diagnosis</h3><div class="box"><p>No mistake is seen.</p></div>'
    causes = "".join(
        f'<div class="box"><p><b>{escape(cause.name)}</b> <span class="soft">fit {cause.fit:.2f}</span></p>'
        f"<p>{escape(cause.summary)}</p><p>{escape(cause.mend)}</p></div>"
        for cause in report.diagnosis
    )
    return f"<h3>Diagnosis</h3>{causes}"


def _layers(report: CompatibilityReport) -> str:
    lines, layer = [], ""
    for row in rows(report):
        cells = "".join(f"<td{'' if at in (0, 1, 6) else ' class=number'}>{escape(cell)}</td>" for at, cell in enumerate(row))
        lines.append(f"<tr{' class=first' if layer and row.layer != layer else ''}>{cells}</tr>")
        layer = row.layer
    return table_html(HEADINGS, lines)


def _plot(report: CompatibilityReport, gate: Gate) -> str:
    """1 - cosine of each probe image in order, logarithmic, beside the limit."""
    if report.embedding is None:
        return ""
    distances = sorted((1 - value for value in report.embedding.cosine), reverse=True)
    highest = max(2e-7, distances[0], 1 - gate.worst_cosine) * 1.5

    def height(distance: float) -> float:
        share = math.log(max(distance, _LOWEST) / _LOWEST) / math.log(highest / _LOWEST)
        return 10 + (_HEIGHT - 30) * (1 - share)

    step = (_WIDTH - 70) / max(1, len(distances) - 1)
    points = " ".join(f"{60 + at * step:.1f},{height(value):.1f}" for at, value in enumerate(distances))
    powers = range(-7, math.floor(math.log10(highest)) + 1)
    marks = "".join(f'<text x="0" y="{height(10.0**power) + 4:.1f}">1e{power}</text>' for power in powers)
    limit = height(1 - gate.worst_cosine)
    return f"""<h3>Cosine distance of each probe image to the reference, worst first</h3>
<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="cosine distances">{marks}
<line x1="60" x2="{_WIDTH - 10}" y1="{limit:.1f}" y2="{limit:.1f}" stroke="var(--fail)" stroke-dasharray="5 4"/>
<text x="{_WIDTH - 10}" y="{limit - 5:.1f}" text-anchor="end">limit {1 - gate.worst_cosine:.2g}</text>
<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.6"/>
<text x="60" y="{_HEIGHT - 4}">{len(distances)} probe images</text></svg>"""


def _cases(cases: Sequence[Case]) -> str:
    if not cases:
        return ""
    return f'<h3>Worst cases</h3><div class="cases">{"".join(_case(case) for case in cases)}</div>'


def _case(case: Case) -> str:
    captions = {"golden": "as it should be", "device": "on the device", "difference": "difference, amplified"}
    pictures = "".join(
        f'<div><img alt="probe {case.probe}, {caption}" src="{escape(case.pictures[kind])}">{caption}</div>'
        for kind, caption in captions.items()
        if kind in case.pictures
    )
    numbers = [f"probe {case.probe}"]
    numbers += [] if case.label is None else [case.label]
    numbers += [] if case.cosine is None else [f"cosine {case.cosine:.6f}"]
    numbers += [] if case.overlap is None else [f"{100 * case.overlap:.0f} % of neighbours kept"]
    found = ""
    if case.reference or case.device:
        lines = [
            f"<tr><td>{rank}</td>{_found(case, case.reference, rank)}{_found(case, case.device, rank)}</tr>"
            for rank in range(1, max(len(case.reference), len(case.device)) + 1)
        ]
        found = table_html(("", "the reference found", "the device found"), lines)
    why = escape("; ".join(case.why))
    caption = f"<b>{escape(' · '.join(numbers))}</b><br>{why}"
    return f'<figure><div class="pictures">{pictures}</div><figcaption>{caption}</figcaption>{found}</figure>'


def _found(case: Case, items: Sequence[Found], rank: int) -> str:
    if rank > len(items):
        return "<td></td>"
    item = items[rank - 1]
    kind = "" if case.label is None or item.label is None else "pass" if item.label == case.label else "fail"
    mark = {"pass": "✓ ", "fail": "✗ ", "": ""}[kind]
    text = f"item {item.item}" if item.label is None else item.label
    return f'<td><span class="{kind}">{mark}{escape(text)}</span> <span class="soft">{item.score:.3f}</span></td>'
