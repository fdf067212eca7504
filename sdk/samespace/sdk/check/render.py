"""A report and its verdict for people: a table on a terminal, aligned plain text elsewhere. Both show the same cells.

:mod:`samespace.sdk.check.html` shows them in a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from samespace.sdk.check.gate import Outcome, Verdict
from samespace.sdk.check.report import (
    Comparison,
    CompatibilityReport,
    EmbeddingLayer,
    RetrievalLayer,
    Settings,
    TensorLayer,
    WorstCase,
)
from samespace.sdk.metrics import Estimate

__all__ = ["HEADINGS", "Row", "foot", "plain", "reasons", "rows", "suspects", "table", "title"]

_COLOURS: dict[Outcome, str] = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}
HEADINGS = ("layer", "measure", "device", "reference", "difference", "n", "worst (probe: value)")


class Row(NamedTuple):
    layer: str
    measure: str
    device: str
    reference: str = ""
    difference: str = ""
    n: str = ""
    worst: str = ""


def reasons(report: CompatibilityReport, verdict: Verdict) -> str:
    """Why the verdict is not a pass, and what would explain it: for a log, or a test that failed."""
    return "\n".join([f"{verdict.outcome.upper()}: {report.title}", *verdict.reasons, *suspects(report)])


def suspects(report: CompatibilityReport) -> list[str]:
    """The diagnosis, a line for each cause; empty where none was asked for, or nothing is wrong."""
    return [
        f"diagnosis: {suspect.name} (fit {suspect.fit:.2f}): {suspect.summary}. {suspect.mend}"
        for suspect in report.diagnosis or ()
    ]


def plain(report: CompatibilityReport, verdict: Verdict) -> str:
    """The whole report as text without colours; columns are aligned by spaces."""
    lines = [HEADINGS, *rows(report)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    findings = [f"{finding.outcome.upper():>12}  {finding.check}: {finding.message}" for finding in verdict.findings]
    return "\n".join(
        [
            *title(report),
            "",
            *body,
            "",
            *findings,
            *suspects(report),
            "",
            *foot(report),
            f"{verdict.outcome.upper()}: {report.title}",
        ]
    )


def table(report: CompatibilityReport, verdict: Verdict) -> Group:
    """The same for a terminal."""
    grid = Table(*HEADINGS, box=SIMPLE_HEAD)
    layer = ""
    for row in rows(report):
        if layer and row.layer != layer:
            grid.add_section()
        grid.add_row(*(escape(cell) for cell in row._replace(layer=row.layer if row.layer != layer else "")))
        layer = row.layer
    findings = [
        Text.assemble((f"{finding.outcome.upper():>12}", _COLOURS[finding.outcome]), f"  {finding.check}: {finding.message}")
        for finding in verdict.findings
    ]
    first, *more = title(report)
    return Group(
        Text(first, style="bold"),
        *(Text(line, style="dim") for line in more),
        grid,
        *findings,
        *(Text(line, style="bold") for line in suspects(report)),
        # A command that is wrapped cannot be copied.
        *(Text(line, style="dim", no_wrap=True, overflow="ignore") for line in foot(report)),
        Text(f"{verdict.outcome.upper()}: {report.title}", style=_COLOURS[verdict.outcome]),
    )


def title(report: CompatibilityReport) -> list[str]:
    """What was checked, in lines."""
    signed = f"signed by {report.signer}" if report.signer else "unsigned"
    return [
        f"{report.model}: {report.title}",
        f"model {report.model_id}  space {report.space_id}",
        f"artifact {report.artifact_id[:16]} ({report.precision})  {report.runtime_version}  "
        f"{signed}{'' if report.trusted else ', not trusted'}",
    ]


def foot(report: CompatibilityReport) -> list[str]:
    """How it was measured, and the command that repeats it, in lines."""
    settings = report.settings
    return [
        f"{100 * settings.confidence:g} % intervals: {settings.n_boot} bootstrap resamples of the queries, "
        f"seed {settings.seed}; rates in percent; difference = device - reference, paired",
        *([f"again with: {report.reproduce}"] if report.reproduce else []),
    ]


def rows(report: CompatibilityReport) -> list[Row]:
    """The numbers."""
    lines = [] if report.tensor is None else _tensor(report.tensor)
    if report.embedding is not None:
        lines += _embedding(report.embedding, report.settings)
    if report.retrieval is not None:
        lines += _retrieval(report.retrieval)
    return lines


def _tensor(layer: TensorLayer) -> list[Row]:
    device = f"{layer.exact} exact" if not layer.max_difference else f"{layer.exact} exact, off by up to {layer.max_difference}"
    return [Row("tensor", "golden tensors", device, n=str(layer.n), worst=_worst(layer.worst, 0))]


def _embedding(layer: EmbeddingLayer, settings: Settings) -> list[Row]:
    n = str(layer.n)
    return [
        Row(
            "embedding",
            f"worst-{settings.worst_percent:g} % cosine",
            f"{layer.worst_cosine:.7f}",
            n=n,
        ),
        Row("embedding", "minimum cosine", f"{layer.min_cosine:.7f}", n=n, worst=_worst(layer.worst, 7)),
        Row("embedding", "mean cosine", layer.mean_cosine.text(1, 6), n=n),
        Row("embedding", "largest angle", f"{layer.max_angle:.4f} degrees", n=n),
        Row("embedding", "score shift", layer.score_shift.text(1, 6), n=n, worst=f"largest {layer.max_score_shift:.6f}"),
    ]


def _retrieval(layer: RetrievalLayer) -> list[Row]:
    size = f"{layer.gallery_size} items" if layer.gallery_size is not None else "size unknown"
    lines = [
        Row("retrieval", "gallery", f"{layer.gallery}, {size}"),
        Row(
            "retrieval",
            f"neighbours kept @{layer.overlap_k}",
            layer.overlap.text(),
            n=str(layer.overlap.n),
            worst=_worst(layer.worst, 2),
        ),
    ]
    lines += [_compared(f"R@{k}", comparison) for k, comparison in layer.recall.items()]
    if layer.mean_average_precision is not None:
        lines.append(_compared("mAP", layer.mean_average_precision))
    if layer.verification is not None:
        row = _compared(f"TAR@FAR={layer.verification.far:g}", layer.verification.tar)
        lines.append(row._replace(worst=f"FAR of the device there: {layer.verification.device_far:.2g}"))
    lines += [_one(f"R@{k} of the cloud model", estimate) for k, estimate in layer.cloud_recall.items()]
    if layer.negative_flips is not None:
        relative = f"relative {layer.relative_negative_flips:.2f}" if layer.relative_negative_flips is not None else ""
        flipped = [f"{probe}" for probe, new, old in zip(*_hits(layer), strict=True) if old and not new]
        worst = f"{relative}; probes {', '.join(flipped[:5])}" if flipped else relative
        lines.append(_one("negative flips", layer.negative_flips)._replace(worst=worst))
    return lines + _hard(layer)


def _hard(layer: RetrievalLayer) -> list[Row]:
    if layer.hard is None:
        return []
    overlap, recall = layer.hard.overlap, layer.hard.recall
    between = "right and wrong item" if layer.hard.by == "labels" else "rank 1 and 2"
    narrow = f"{between} within {layer.hard.margin:.4f}"
    lines = [
        Row("retrieval", f"hardest: kept @{layer.overlap_k}", overlap.text(), n=str(overlap.n), worst=narrow),
    ]
    return lines if recall is None else [*lines, _compared("hardest: R@1", recall)]


def _hits(layer: RetrievalLayer) -> tuple[Sequence[int], Sequence[bool], Sequence[bool]]:
    return ((), (), ()) if layer.hits is None else (layer.hits.probe, layer.hits.device, layer.hits.reference)


def _compared(name: str, comparison: Comparison) -> Row:
    device, reference, difference = comparison.device, comparison.reference, comparison.difference
    return Row("retrieval", name, device.text(), reference.text(), difference.text(), n=str(device.n))


def _one(name: str, estimate: Estimate) -> Row:
    return Row("retrieval", name, estimate.text(), n=str(estimate.n))


def _worst(cases: Sequence[WorstCase], digits: int) -> str:
    return ", ".join(f"{case.probe}: {case.value:.{digits}f}" for case in cases[:2])
