"""What ``samespace check`` reads and writes: saved reports, judged again; JSON, a page, and the words on the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from samespace.sdk.errors import ConfigError

if TYPE_CHECKING:
    from samespace.sdk.check import CompatibilityReport, Verdict
    from samespace.sdk.check.gate import Outcome

__all__ = ["finish", "refuse_unwritable", "saved", "write_json"]

#: Of the file that --json writes and --report reads.
_FILE_VERSION = 1


def saved(path: Path) -> list[CompatibilityReport]:
    """The reports of a file that ``--json`` wrote, or a single report.

    Raises:
        ConfigError: no such file, or no report in it. FormatVersionError: written by a newer samespace.
    """
    from samespace.sdk.check import CompatibilityReport

    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one with samespace check BUNDLE --json {path}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not JSON that can be read ({error})") from None
    checks = content.get("checks") if isinstance(content, dict) else None
    entries = [entry.get("report") for entry in checks if isinstance(entry, dict)] if isinstance(checks, list) else [content]
    if not entries:
        raise ConfigError(f"{path}: holds no report; write one with samespace check BUNDLE --json {path}")
    return [CompatibilityReport.parse(json.dumps(entry), str(path)) for entry in entries]


def refuse_unwritable(path: Path | None) -> None:
    """Before anything is measured.

    Raises:
        ConfigError: nothing can be written at ``path``.
    """
    if path is None or str(path) == "-":
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{path}: cannot be written; name a file in a folder that can")


def write_json(path: Path | None, outcome: Outcome, checks: Sequence[tuple[CompatibilityReport, Verdict]], **more: Any) -> bool:
    """Write what ``--json`` asks for; says whether it went to standard output, where nothing else belongs then."""
    from samespace.sdk.files import atomic_write

    if path is None:
        return False
    content: dict[str, Any] = {
        "format_version": _FILE_VERSION,
        "outcome": outcome,
        **more,
        "checks": [
            {"report": report.model_dump(mode="json"), "verdict": verdict.model_dump(mode="json")} for report, verdict in checks
        ],
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if str(path) == "-":
        print(text, end="")
        return True
    atomic_write(path, text)
    return False


def finish(
    reports: list[CompatibilityReport], limits: Mapping[str, float], json_file: Path | None, html_file: Path | None
) -> None:
    """Judge by each report's own gate with other ``limits``, print, write, and exit with the worst outcome."""
    from rich.console import Console

    from samespace.sdk.check import EXIT_CODES, Gate, worst_outcome
    from samespace.sdk.check.html import page
    from samespace.sdk.check.render import plain, table
    from samespace.sdk.files import atomic_write

    gates = [Gate.of(report).replaced(**limits) for report in reports]
    verdicts = [gate.judge(report) for gate, report in zip(gates, reports, strict=True)]
    outcome = worst_outcome([verdict.outcome for verdict in verdicts])
    to_stdout = write_json(json_file, outcome, list(zip(reports, verdicts, strict=True)))
    if html_file is not None:
        atomic_write(html_file, page(list(zip(reports, verdicts, strict=True)), gates))
    if not to_stdout:
        console = Console(highlight=False)
        for report, verdict in zip(reports, verdicts, strict=True):
            if console.is_terminal:
                console.print(table(report, verdict))
            else:
                print(plain(report, verdict) + "\n")
        passed = sum(verdict.outcome == "pass" for verdict in verdicts)
        print(f"{outcome.upper()}: {passed} of {len(verdicts)} checks passed")
    raise typer.Exit(EXIT_CODES[outcome])
