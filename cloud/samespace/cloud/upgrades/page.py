"""An upgrade report and its verdict as one page (:mod:`samespace.sdk.page`). All text is escaped: it may be a stranger's."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from samespace.cloud.upgrades.report import GroupTransfer, Metric, ThresholdTransfer, UpgradeReport
from samespace.cloud.upgrades.verdict import Verdict
from samespace.sdk.check.gate import Outcome
from samespace.sdk.metrics import Estimate
from samespace.sdk.page import document, outcome_html, table_html

__all__ = ["page"]

_SAID: dict[Outcome, str] = {"pass": "may go live", "fail": "must not go live", "inconclusive": "is not decided"}
_NAMES: dict[Metric, str] = {"recall@1": "R@1", "map": "mAP"}
#: Slices and flips that are listed at most; the JSON has all.
_LISTED = 20


def page(report: UpgradeReport, verdict: Verdict) -> str:
    """The page as HTML text."""
    findings = [
        f"<tr><td>{outcome_html(one.outcome)}</td><td>{one.check}</td><td>{escape(one.message)}</td></tr>"
        for one in verdict.findings
    ]
    parts = [
        "<h3>What was judged</h3>",
        table_html(("outcome", "check", "finding"), findings),
        *(_matrix(report, metric) for metric in _NAMES),
        _chain(report),
        _flips(report, verdict),
        _slices(verdict),
        *([] if report.thresholds is None else [_thresholds(report.thresholds)]),
        *([] if report.groups is None else [_groups(report.groups)]),
        f'<p class="soft"><small>again with: <code>{escape(report.reproduce)}</code></small></p>' if report.reproduce else "",
    ]
    names = f"{report.old.name} → {report.new.name}"
    n = len(report.outcomes.old.recall1)
    return document(
        title=f"{verdict.outcome}: {names}",
        heading=f'{escape(names)} <span class="{verdict.outcome}">{_SAID[verdict.outcome]}</span>',
        about=f"{n} queries in a gallery of {report.gallery}. {report.old.model_id} → {report.new.model_id}",
        body="\n".join(filter(None, parts)),
        version=report.samespace,
    )


def _matrix(report: UpgradeReport, metric: Metric) -> str:
    """Query models down, gallery models across; darker is better, and a frame shows what beats the gallery's own model."""
    names = [one.name for one in report.generations]
    values = [value for row in report.table(metric) for value in row]
    low, high = min(values), max(values)
    lines = []
    for q, name in enumerate(names):
        cells = []
        for g in range(len(names)):
            estimate, own = report.cell(q, g).of(metric), report.cell(g, g).of(metric)
            shade = round(55 * (estimate.value - low) / (high - low)) if high > low else 0
            mark = " ▲" if estimate.value > own.value and q != g else " ▼" if q > g else ""
            style = f"background: color-mix(in srgb, var(--pass) {shade}%, transparent)"
            cells.append(f'<td class="number" style="{style}">{escape(estimate.text())}{mark}</td>')
        lines.append(f"<tr><td><b>{escape(name)}</b></td>{''.join(cells)}</tr>")
    text = (
        f'<h3>M(query model, gallery model), {_NAMES[metric]}, percent [95 % interval]</h3><p class="soft">▲ finds more in '
        "that gallery than the model that made it; ▼ a newer model that finds less.</p>"
    )
    return text + table_html(("query ↓ gallery →", *names), lines)


def _chain(report: UpgradeReport) -> str:
    rows = []
    for metric, name in _NAMES.items():
        cells = [
            name,
            f"{report.compatibility[metric]:.2f}",
            f"{100 * report.accuracy[metric]:.1f}",
            f"{100 * report.gain[metric]:.0f} %" if metric in report.gain else "-",
            f"{100 * report.tax[metric]:.1f}" if metric in report.tax else "-",
            escape(report.control.own.of(metric).text()) if report.control else "-",
            escape(report.control.old.of(metric).text()) if report.control else "-",
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("metric", "AC", "AA", "update gain", "tax (points)", "M(n*, n*)", "M(n*, o)")
    return "<h3>Chain, gain and tax</h3>" + table_html(heads, rows)


def _flips(report: UpgradeReport, verdict: Verdict) -> str:
    flips = verdict.flips
    words = (
        f"{flips.rate.text()} % of {flips.rate.n} queries were right and are wrong now; {100 * flips.positive:.1f} % became "
        f"right. Relative negative flip rate {flips.relative:.2f}."
    )
    queries = report.outcomes.queries
    keys = queries.get("key", ())
    shown = [escape(keys[place] if keys else f"query {place}") for place in flips.queries[:_LISTED]]
    more = len(flips.queries) - len(shown)
    listed = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"<h3>Negative flips</h3><p>{escape(words)}</p>" + (f'<p class="soft">{listed}</p>' if shown else "")


def _slices(verdict: Verdict) -> str:
    worst = sorted(verdict.slices, key=lambda one: (one.outcome is None, one.difference.value))[:_LISTED]
    if not worst:
        return ""
    rows = [
        f"<tr><td>{'-' if one.outcome is None else outcome_html(one.outcome)}</td><td>{escape(one.field)}</td>"
        f'<td>{escape(one.value)}</td><td>{one.difference.n}</td><td class="number">{100 * one.old:.1f}</td>'
        f'<td class="number">{escape(one.difference.text())}</td><td class="number">{100 * one.flips:.1f}</td></tr>'
        for one in worst
    ]
    heads = ("outcome", "field", "slice", "n", "before", "change (points)", "flips %")
    note = '<p class="soft">The intervals hold for all slices of a field at once; a slice without an outcome is too small.</p>'
    return f"<h3>Slices, worst first: {len(worst)} of {len(verdict.slices)}</h3>{note}" + table_html(heads, rows)


def _thresholds(moved: ThresholdTransfer) -> str:
    def row(name: str, threshold: float, tar: Estimate, far: Estimate | None) -> str:
        cells = (name, f"{threshold:.3f}", tar.text(), "-" if far is None else far.text(digits=3))
        return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"

    rows = [
        row("before", moved.threshold, moved.tar_old, moved.far_old),
        row("new queries, old threshold", moved.threshold, moved.tar_new, moved.far_new),
        row("new queries, advised threshold", moved.advised, moved.tar_advised, None),
    ]
    return f"<h3>A threshold for FAR {moved.far:g}</h3>" + table_html(("", "threshold", "TAR %", "FAR %"), rows)


def _groups(moved: GroupTransfer) -> str:
    words: Sequence[str] = (
        f"{moved.items} pictures, joined at a mean cosine of {moved.threshold:.3f}: {moved.groups_old} groups before, "
        f"{moved.groups_new} by the new model; adjusted Rand index between them {moved.agreement:.3f}, with the classes "
        f"{moved.truth_old:.3f} before and {moved.truth_new:.3f} now.",
        f"New photos put wrongly to yesterday's groups: {moved.rule_error_old.text()} % by old queries, "
        f"{moved.rule_error_new.text()} % by new ones.",
    )
    return "<h3>Yesterday's groups</h3>" + "".join(f"<p>{escape(line)}</p>" for line in words)
