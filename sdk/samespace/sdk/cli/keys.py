"""``samespace keys``: make the keys that sign bundles, and say whose signatures this machine trusts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from samespace.sdk.signing import TrustedKey

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make and trust the keys that sign bundles.",
    epilog="Example: samespace keys new",
)

_Json = Annotated[bool, typer.Option("--json", help="Print machine-readable output.")]


@app.command(epilog="Example: samespace keys new, then: samespace export RUN -o phone.samespace")
def new(
    name: Annotated[str, typer.Argument(help="Name of the key; 'default' signs when no other is named.")] = "default",
    trust_it: Annotated[bool, typer.Option("--trust/--no-trust", help="Open what it signs on this machine.")] = True,
    as_json: _Json = False,
) -> None:
    """Make a key pair. A key that is already there is never overwritten."""
    from samespace.sdk.errors import ConfigError
    from samespace.sdk.files import atomic_write
    from samespace.sdk.signing import SigningKey, TrustStore, key_path

    private = key_path(name)
    public = private.with_suffix(".pub.pem")
    for path in (private, public):
        if path.exists():
            raise ConfigError(f"{path}: a key is already there and is not overwritten; choose another name or move it away")
    key, store = SigningKey.new(), TrustStore.default()
    if trust_it:
        store.add(key.public, name)
    try:
        key.save(private)
        atomic_write(public, key.public.to_pem())
    except BaseException:
        if trust_it:
            store.remove(key.key_id)
        raise
    if as_json:
        result = {"name": name, "key_id": key.key_id, "private": str(private), "public": str(public), "trusted": trust_it}
        typer.echo(json.dumps(result))
        return
    typer.echo(f"key {key.key_id} ({name}){', trusted here' if trust_it else ''}")
    typer.echo(f"  private: {private} (signs; keep it to yourself)")
    typer.echo(f"  public:  {public} (others run: samespace keys trust {public.name})")


@app.command(epilog="Example: samespace keys trust default.pub.pem --name phone-team")
def trust(
    file: Annotated[Path, typer.Argument(help="Public key (.pub.pem) that its owner gave you.")],
    name: Annotated[str | None, typer.Option(help="What to call it here; default: the file's name.")] = None,
    as_json: _Json = False,
) -> None:
    """Trust a public key: bundles that it signed are opened without --allow-unsigned."""
    from samespace.sdk.signing import PublicKey, TrustStore

    trusted = TrustStore.default().add(PublicKey.load(file), name if name is not None else file.name.split(".")[0])
    typer.echo(json.dumps(_fields(trusted)) if as_json else f"trusted: {trusted.key_id} ({trusted.name})")


@app.command(name="list", epilog="Example: samespace keys list --json")
def list_keys(as_json: _Json = False) -> None:
    """List the keys whose bundles are opened on this machine."""
    from samespace.sdk.signing import TrustStore

    store = TrustStore.default()
    trusted = store.list()
    if as_json:
        typer.echo(json.dumps([_fields(key) for key in trusted]))
        return
    for key in trusted:
        typer.echo(f"{key.key_id}  {key.name}")
    if not trusted:
        typer.echo(f"no key is trusted ({store.folder}); make one with 'samespace keys new', or 'samespace keys trust FILE'")


@app.command(epilog="Example: samespace keys untrust 0123456789abcdef")
def untrust(
    key_id: Annotated[str, typer.Argument(help="As 'samespace keys list' shows it.")],
    as_json: _Json = False,
) -> None:
    """Trust a key no longer; bundles that it signed are refused from now on."""
    from samespace.sdk.signing import TrustStore

    removed = TrustStore.default().remove(key_id)
    typer.echo(json.dumps(_fields(removed)) if as_json else f"no longer trusted: {removed.key_id} ({removed.name})")


def _fields(trusted: TrustedKey) -> dict[str, str]:
    return {"key_id": trusted.key_id, "name": trusted.name}
