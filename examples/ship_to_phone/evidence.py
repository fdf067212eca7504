"""What the demo claims, and the two files that say whether it holds: ``report.json`` and ``index.html``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import ARTIFACTS, CONTROL, SHEET_ARTIFACT, Demo
from pictures import SheetRow, contact_sheet, png_bytes, training_curves
from table import Row, Table

from samespace.cloud.data.emoji import attribution
from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine, measured_text, write_ledger
from samespace.sdk.files import atomic_write
from samespace.sdk.metrics import Estimate

__all__ = ["Figures", "claims", "write_report"]

HERE = Path(__file__).parent
_MAC_RATIO = 10.0


@dataclass(frozen=True)
class Figures:
    """What the steps found.

    Attributes:
        table: all rows.
        sheet: the contact sheet's rows.
        verdicts: tier -> exit code of ``samespace check`` (0 pass, 1 fail, 3 inconclusive).
        size: of the recipe.
        minutes: since the demo began.
    """

    table: Table
    sheet: Sequence[SheetRow]
    verdicts: dict[str, int]
    size: str
    minutes: float


def claims(demo: Demo, figures: Figures) -> list[EvidenceRecord]:
    """The demo's claims with their bars, judged."""
    table, cloud = figures.table, demo.recipe.cloud
    rows = {row.name: row for row in table.rows}
    command = "make demo" if figures.size == "full" else f"make demo SIZE={figures.size}"
    common = {"seeds": (demo.seed,), "device": describe_machine(), "command": command, "commit": commit_id(HERE)}

    control = rows[f"{CONTROL} → {cloud}"].recall1
    best = max(demo.edges, key=lambda name: rows[f"{name} → {cloud}"].recall1.value)
    crossing = f"{best} → {cloud}"
    gain = table.difference(crossing, f"{CONTROL} + Procrustes → {cloud}")
    compatible = rows[crossing].recall1
    drops = {
        name: table.difference(name, f"{name.split(' ')[0]} → {cloud}") for name, row in rows.items() if row.group == ARTIFACTS
    }
    cosines = demo.worst_cosines
    wrong_drops = [name for name, drop in drops.items() if abs(drop.value) > 0.005]
    wrong_cosines = [name for name, cosine in cosines.items() if cosine < (0.999 if "fp16" in name else 0.99999)]
    margins = {name: table.difference(f"{cloud} → {cloud}", f"{name} → {name}") for name in (*demo.edges, CONTROL)}
    ratio = _number(rows[f"{cloud} → {cloud}"].macs) / _number(rows[f"{demo.edges[0]} → {demo.edges[0]}"].macs)

    return [
        _record(
            common,
            "control",
            "the same edge network trained alone cannot search the cloud's gallery",
            "R@1 <= 2 %",
            control,
            control.value <= 0.02,
            "the independent control finds more than chance would",
        ),
        _record(
            common,
            "compatible",
            f"the co-trained {best} model searches the cloud's gallery, better than the control rotated into its space",
            "R@1 >= 38 % and >= 3 points above the control mapped by Procrustes",
            compatible,
            compatible.value >= 0.38 and gain.value >= 0.03,
            f"R@1 is {compatible.text()} and {gain.text()} points above the mapped control",
            {"R@1 %": 100 * compatible.value, **_points("points above Procrustes", gain)},
        ),
        _record(
            common,
            "exports",
            "every exported artifact finds what its torch model finds",
            "R@1 within 0.5 points; worst-1 % cosine >= 0.99999 (fp32), >= 0.999 (fp16)",
            None,
            not wrong_drops and not wrong_cosines,
            f"R@1 differs for {wrong_drops or 'none'}; the cosine is too low for {wrong_cosines or 'none'}",
            {
                "largest R@1 difference, points": 100 * max(abs(drop.value) for drop in drops.values()),
                "worst fp32 cosine": min(cosine for name, cosine in cosines.items() if "fp32" in name),
                "worst fp16 cosine": min(cosine for name, cosine in cosines.items() if "fp16" in name),
            },
            n=min(drop.n for drop in drops.values()),
        ),
        _record(
            common,
            "table",
            f"the cloud model has >= {_MAC_RATIO:.0f} times the phone's MACs and is measurably better than each edge alone",
            f"MACs ratio >= {_MAC_RATIO:.0f}; R@1 above each edge on both sides, paired interval above 0",
            None,
            ratio >= _MAC_RATIO and all(margin.low > 0 for margin in margins.values()),
            "the interval of a paired difference reaches 0, or the ratio is too small",
            {"MACs ratio": ratio}
            | {k: v for name, gap in margins.items() for k, v in _points(f"points above {name}", gap).items()},
            n=len(table.query_labels),
        ),
    ]


def write_report(output: Path, demo: Demo, figures: Figures) -> bool:
    """Write ``report.json``, ``contact-sheet.png`` and ``index.html``; returns whether every claim holds."""
    records = claims(demo, figures)
    sheet = png_bytes(contact_sheet(figures.sheet))
    atomic_write(output / "contact-sheet.png", sheet)
    write_ledger(
        output / "report.json",
        records,
        size=figures.size,
        minutes=round(figures.minutes, 1),
        checks=figures.verdicts,
        table=[asdict(row) | {"n": row.n} for row in figures.table.rows],
        table_markdown=figures.table.markdown(),
    )
    atomic_write(output / "index.html", _page(demo, figures, records, sheet))
    return all(record.holds for record in records)


def _page(demo: Demo, figures: Figures, records: Sequence[EvidenceRecord], sheet: bytes) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, autoescape=select_autoescape())
    table, cloud = figures.table, demo.recipe.cloud
    rows = {row.name: row for row in table.rows}
    first = demo.edges[0]
    summary = (
        f"{_percent(rows[f'{first} → {cloud}'])} of the {first} model's queries find their emoji first in the cloud model's "
        f"gallery; {_percent(rows[f'{CONTROL} → {cloud}'])} do when the same network was trained alone. The cloud model "
        f"on both sides gives {_percent(rows[f'{cloud} → {cloud}'])}."
    )
    return environment.get_template("page.html").render(
        summary=summary,
        sheet_artifact=SHEET_ARTIFACT,
        sheet_png=base64.b64encode(sheet).decode(),
        curves_png=base64.b64encode(training_curves(demo.folder / "log.jsonl")).decode(),
        groups=table.groups(),
        records=[{**record.model_dump(), "measured_text": measured_text(record)} for record in records],
        n_query=len(table.query_labels),
        n_gallery=len(table.gallery_labels),
        n_classes=len(set(table.gallery_labels)),
        timing_note="ms / image: batch 1, one thread, median, without decoding, on the machine below: no phone's latency.",
        seed=demo.seed,
        command=records[0].command,
        commit=records[0].commit,
        device=records[0].device,
        minutes=f"{figures.minutes:.1f}",
        attribution=attribution(),
    )


def _record(
    common: dict[str, Any],
    id: str,
    claim: str,
    bar: str,
    estimate: Estimate | None,
    holds: bool,
    reason: str,
    measured: dict[str, float] | None = None,
    n: int = 0,
) -> EvidenceRecord:
    return EvidenceRecord(
        id=id,
        claim=claim,
        bar=bar,
        measured=100 * estimate.value if estimate and measured is None else measured or {},
        ci95=(100 * estimate.low, 100 * estimate.high) if estimate else None,
        n=estimate.n if estimate else n,
        holds=holds,
        reason="" if holds else reason,
        **common,
    )


def _number(text: str) -> float:
    return float(text.split()[0])


def _percent(row: Row) -> str:
    percent = 100 * row.recall1.value
    return f"{percent:.0f} %" if percent >= 1 else f"{percent:.1f} %"


def _points(name: str, difference: Estimate) -> dict[str, float]:
    """A paired difference with the ends of its 95 % interval, in points."""
    return {name: 100 * difference.value, f"{name}, low": 100 * difference.low, f"{name}, high": 100 * difference.high}
