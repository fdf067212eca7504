"""``samespace devices``: install what emulated devices need, see whether it is good, and what artifacts cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from samespace.edge.devices.installs import Installable

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Install what emulated devices need, and see whether it is good.",
    epilog="Example: samespace devices install arm64",
)

_Names = Annotated[list[str], typer.Argument(help="Names of sets, as 'samespace devices list' shows them.")]
_Json = Annotated[bool, typer.Option("--json", help="Print machine-readable output.")]


@app.command(epilog="Example: samespace devices install arm64, then: samespace check phone.samespace --device a53,a76")
def install(names: _Names) -> None:
    """Install or mend sets, in the user's cache folder (SAMESPACE_CACHE_DIR) and as a plain user."""
    import time

    for found in _loaded(names):
        start = time.monotonic()
        there = found.check() is None
        found.install()
        how = "was there, and is good" if there else f"installed in {time.monotonic() - start:.0f} s"
        typer.echo(f"{found.name}: {how} ({_described(found)})")


@app.command(name="list", epilog="Example: samespace devices list --json")
def list_devices(as_json: _Json = False) -> None:
    """List the devices, and the sets that can be installed for them."""
    from samespace.edge.devices.cache import cache_dir
    from samespace.edge.devices.installs import INSTALLS
    from samespace.edge.devices.profile import load_profile, profile_names

    sets = [(found, found.check()) for found in _loaded(list(INSTALLS))]
    profiles = [load_profile(name) for name in profile_names()]
    if as_json:
        devices = [
            {"name": profile.name, "description": profile.description, "kind": profile.runs.kind} for profile in profiles
        ]
        told = [{"name": one.name, "usable": wrong is None, "problem": wrong, **one.details()} for one, wrong in sets]
        typer.echo(json.dumps({"cache": str(cache_dir()), "devices": devices, "sets": told}))
        return
    for profile in profiles:
        typer.echo(f"{profile.name:14} {profile.description}")
    typer.echo(f"sets in {cache_dir()}:")
    for found, wrong in sets:
        typer.echo(f"{found.name:14} {'not usable' if wrong else 'installed'}: {wrong or _described(found)}")


@app.command(epilog="Example: samespace devices doctor arm64")
def doctor(names: Annotated[list[str] | None, typer.Argument(help="Names of sets; default: those installed.")] = None) -> None:
    """Compare every file of the sets with its hash, and start what was installed. Exit code 1 if something is wrong."""
    from samespace.edge.devices.cache import set_folder
    from samespace.edge.devices.installs import INSTALLS

    chosen = _loaded(names or [name for name in INSTALLS if set_folder(name).exists()])
    if not chosen:
        typer.echo(f"nothing is installed; there is: {', '.join(INSTALLS)} (samespace devices install NAME)")
    healthy = True
    for found in chosen:
        wrong = found.check(thorough=True)
        healthy = healthy and wrong is None
        typer.echo(f"{found.name}: {wrong or f'good ({_described(found)})'}")
    if not healthy:
        raise typer.Exit(1)


@app.command(epilog="Example: samespace devices remove arm64")
def remove(names: _Names) -> None:
    """Remove sets, with what was downloaded for them."""
    for found in _loaded(names):
        typer.echo(f"{found.name}: {'removed' if found.remove() else 'was not installed'}")


@app.command(epilog="Example: samespace devices costs phone.samespace")
def costs(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    artifact: Annotated[list[str] | None, typer.Option(help="Name of one; may be repeated. Default: all.")] = None,
    repeats: Annotated[int, typer.Option(min=0, help="Processes in which memory is measured; 0 leaves it out.")] = 3,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Open a bundle whose signer is not trusted.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """What one image costs with each artifact: size, parameters, MACs, bytes moved and memory. No time: that is the phone's."""
    from dataclasses import asdict

    from samespace.edge.devices.costs import artifact_costs, costs_text
    from samespace.sdk.bundle import Bundle
    from samespace.sdk.cli.progress import progress

    opened = Bundle.open(bundle, allow_unsigned=allow_unsigned)
    names = [opened.artifact(name).spec.name for name in artifact or [spec.path for spec in opened.artifacts]]
    found = []
    with progress("Counting", total=len(names)) as bar:
        for name in names:
            found.append(artifact_costs(opened, name, repeats=repeats))
            bar.advance(1, name)
    typer.echo(json.dumps([asdict(one) for one in found]) if as_json else costs_text(found))


def _loaded(names: list[str]) -> list[Installable]:
    """All of them, or an error before anything is done."""
    from samespace.edge.devices.installs import load_install

    return [load_install(name) for name in dict.fromkeys(names)]


def _described(found: Installable) -> str:
    return ", ".join(f"{name} {text}" for name, text in found.details().items())
