"""``samespace gallery key create | list | revoke``: at the store itself, or through a running service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samespace.sdk.errors import ConfigError

if TYPE_CHECKING:
    from samespace.cloud.gallery.keys import KeyRing
    from samespace.cloud.gallery.remote_keys import RemoteKeys

    KeysSomewhere = KeyRing | RemoteKeys

__all__ = ["app"]

app = typer.Typer(
    help="Make, list and revoke the API keys of a gallery.",
    epilog="Example: samespace gallery key create --role reader --data ./gallery",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Data = Annotated[Path | None, typer.Option("--data", help="Folder of an embedded PostgreSQL that nobody serves now.")]
_Database = Annotated[str | None, typer.Option("--database", envvar="SAMESPACE_GALLERY_DATABASE", help="URL of a PostgreSQL.")]
_Gallery = Annotated[str | None, typer.Option("--gallery", help="URL of a running service; needs --key.")]
_Key = Annotated[
    str | None, typer.Option("--key", envvar="SAMESPACE_GALLERY_KEY", help="An administrator's key of that service.")
]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


@app.command(epilog="Example: samespace gallery key create --role writer --tenant acme --data ./gallery")
def create(
    role: Annotated[str, typer.Option("--role", help="reader, writer or admin.")] = "reader",
    tenant: Annotated[str, typer.Option("--tenant", help="Whose gallery it opens; each tenant has its own items.")] = "",
    name: Annotated[str, typer.Option("--name", help="For people: whose key it is.")] = "",
    data: _Data = None,
    database: _Database = None,
    gallery: _Gallery = None,
    key: _Key = None,
    as_json: _Json = False,
) -> None:
    """Make a key and print it: it is shown only now, for only its hash is kept."""
    with _keys(data, database, gallery, key) as keys:
        text, info = keys.create(role, tenant, name)  # type: ignore[arg-type] - judged where it is made
    if as_json:
        print(json.dumps({"key": text, "info": info.model_dump()}))
    else:
        print(text)


@app.command("list", epilog="Example: samespace gallery key list --data ./gallery")
def list_keys(
    data: _Data = None, database: _Database = None, gallery: _Gallery = None, key: _Key = None, as_json: _Json = False
) -> None:
    """List the keys, revoked ones too; never the keys' texts, which nobody has."""
    with _keys(data, database, gallery, key) as keys:
        infos = keys.list()
    if as_json:
        print(json.dumps([info.model_dump() for info in infos]))
        return
    for info in infos:
        state = "revoked" if info.revoked is not None else "good"
        made = datetime.fromtimestamp(info.created, UTC).date().isoformat()
        print(f"{info.key_id}  {info.role:6s}  {state:7s}  {made}  {info.tenant or '-'}  {info.name}".rstrip())


@app.command(epilog="Example: samespace gallery key revoke 0123456789ab --data ./gallery")
def revoke(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as 'list' shows it (not its text).")],
    data: _Data = None,
    database: _Database = None,
    gallery: _Gallery = None,
    key: _Key = None,
) -> None:
    """Let a key not be good any more."""
    with _keys(data, database, gallery, key) as keys:
        info = keys.revoke(key_id)
    print(f"{info.key_id} is revoked")


@contextmanager
def _keys(data: Path | None, database: str | None, gallery: str | None, key: str | None) -> Iterator[KeysSomewhere]:
    if (data is not None) + (database is not None) + (gallery is not None) != 1:
        raise ConfigError("say where the keys are kept: one of --data DIR, --database URL and --gallery URL")
    if gallery is not None:
        from samespace.cloud.gallery.remote_keys import RemoteKeys

        if not key:
            raise ConfigError("--gallery needs --key (or SAMESPACE_GALLERY_KEY): the key of an administrator")
        with RemoteKeys(gallery, key) as remote:
            yield remote
        return
    from samespace.cloud.gallery.keys import KeyRing
    from samespace.cloud.gallery.shelf import shelf_beside
    from samespace.cloud.gallery.stores import open_stores

    with open_stores(data=data, database=database) as stores:
        yield KeyRing(shelf_beside(stores.registry))
