"""``samespace check --device a53,a76,browser``: the matrix, printed and written."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import typer

from samespace.sdk.check.device_process import Task
from samespace.sdk.check.gate import EXIT_CODES
from samespace.sdk.check.html import page
from samespace.sdk.check.matrix_render import matrix_plain, matrix_table
from samespace.sdk.check.matrix_run import MatrixCheck, check_devices
from samespace.sdk.cli.check_files import refuse_unwritable, write_json
from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_write

__all__ = ["check_matrix"]


def check_matrix(
    task: Task,
    devices: Sequence[str],
    artifacts: Sequence[str],
    runtimes: Sequence[str],
    limits: Mapping[str, float],
    json_file: Path | None,
    html_file: Path | None,
    fresh: bool,
    disable: bool,
    key: Path | None,
) -> NoReturn:
    """Check on all devices, print, write, and exit with the worst outcome; options as of ``samespace check``."""
    from rich.console import Console

    from samespace.sdk.device_evidence import signer_for, write_device_evidence

    # Before minutes of work: may the files be written, and the bundle be written and signed?
    for path in (json_file, html_file):
        refuse_unwritable(path)
    signer = signer_for(task.bundle, key, allow_unsigned=task.allow_unsigned) if disable else None
    check = _checked(task, devices, artifacts, runtimes, limits, fresh)
    # Printed first: a disk that is full by now takes nothing from what is on the screen.
    to_stdout = str(json_file) == "-"
    if not to_stdout:
        console = Console(highlight=False)
        if console.is_terminal:
            console.print(matrix_table(check.matrix, check.checks))
        else:
            print(matrix_plain(check.matrix, check.checks))
    try:
        about = check.matrix.model_dump(mode="json", exclude={"bundle"})
        write_json(json_file, check.matrix.outcome, check.checks, matrix=about)
        if html_file is not None:
            atomic_write(html_file, page(check.checks, check.gates, check.matrix))
    except OSError as error:
        raise ConfigError(f"the report cannot be written ({error})") from None
    if disable:
        for line in write_device_evidence(task.bundle, check.matrix.cells, signer, allow_unsigned=task.allow_unsigned):
            print(line, file=sys.stderr if to_stdout else sys.stdout)
    raise typer.Exit(EXIT_CODES[check.matrix.outcome])


def _checked(
    task: Task,
    devices: Sequence[str],
    artifacts: Sequence[str],
    runtimes: Sequence[str],
    limits: Mapping[str, float],
    fresh: bool,
) -> MatrixCheck:
    from contextlib import ExitStack

    from samespace.sdk.cli.progress import Bar, progress

    with ExitStack() as stack:
        bars: list[Bar] = []
        try:
            check = check_devices(
                task,
                devices,
                artifacts=artifacts,
                runtimes=runtimes,
                limits=limits,
                fresh=fresh,
                planned=lambda total: bars.append(stack.enter_context(progress("Checking", total=total))),
                advance=lambda place: bars[0].advance(1, place),
            )
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from what is finished", file=sys.stderr)
            raise
    if check.resumed:
        print(f"{check.resumed} checks are from a run that did not finish; --fresh measures them again", file=sys.stderr)
    return check
