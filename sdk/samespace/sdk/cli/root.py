"""The root of the command line: finds the sub-commands that each floor contributes, and imports only the one that is used.

A sub-command is an entry point of the group ``samespace.commands`` that names a :class:`typer.Typer`. So ``samespace check``
on a device never loads torch, and ``samespace --help`` loads nothing at all.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from samespace.sdk.errors import MissingExtraError, SamespaceError

__all__ = ["COMMANDS", "main"]

#: Name -> one line for ``samespace --help``, so that the help needs no import. Other packages' commands are listed bare.
COMMANDS = {
    "train": "Co-train a cloud model and edge models into one embedding space.",
    "nas": "Search the small network that fits best into a finished run's space.",
    "export": "Write a run's models as verified bundles: ONNX, TFLite, Core ML.",
    "check": "Prove that a bundle's artifacts give the embeddings the gallery expects.",
    "devices": "Install what emulated devices need, and see whether it is good.",
    "bisect": "Name the first operation of an artifact that computes something else.",
    "report": "Judge an upgrade: what it finds in the old gallery, and what it breaks.",
    "adapters": "Map one model's embeddings to another's, when nobody can retrain.",
    "rollout": "Propose gallery model, adapters and backfill for a fleet of devices.",
    "gallery": "Serve a gallery, add images to it, search it.",
    "keys": "Make and trust the keys that sign bundles.",
}

#: Top-level module -> the extra that brings it, for commands whose dependencies are not installed.
_EXTRAS = {
    "torch": "train",
    "resvg_py": "train",
    "pyarrow": "train",
    "onnx": "export",
    "coremltools": "export",
    "litert_torch": "export",
    "fastapi": "gallery",
    "uvicorn": "gallery",
    "psycopg": "gallery",
    "pgvector": "gallery",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; never returns.

    Exit codes: what the command says; 1 for an error of ours, printed in one line on stderr; 2 for wrong usage; 130 for
    Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {entry.name: entry for entry in entry_points(group="samespace.commands")}
    name = arguments[0] if arguments else ""
    try:
        if name in commands:
            _run(commands[name], arguments[1:])
        _overview(sorted(commands, key=[*COMMANDS, *sorted(commands)].index))(args=arguments, prog_name="samespace")
        sys.exit(0)
    except SamespaceError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


def _run(entry: EntryPoint, arguments: list[str]) -> None:
    try:
        typer.main.get_command(entry.load())(args=arguments, prog_name=f"samespace {entry.name}")
    except ModuleNotFoundError as error:
        # Commands import what they need when it is needed, so a missing package shows here, at the latest.
        top = (error.name or "").split(".")[0]
        if top not in _EXTRAS:
            raise
        raise MissingExtraError(_EXTRAS[top], f"'samespace {entry.name}'") from error


def _overview(names: list[str]) -> typer.Typer:
    """What is shown when no sub-command is named: help, version, or the usage error for an unknown name."""
    app = typer.Typer(
        name="samespace",
        help="One embedding space, from cloud to phone, and from this year's model to next year's.",
        epilog="Example: samespace check phone.samespace",
        context_settings={"help_option_names": ["-h", "--help"]},
        no_args_is_help=True,
        add_completion=False,
    )

    @app.callback()
    def root(
        show: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        pass

    def listed() -> None:
        """Only its name and help are shown here: main() runs the command itself."""

    for name in names:
        app.command(name, help=COMMANDS.get(name, ""))(listed)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"samespace {version('samespace')}")
        raise typer.Exit
