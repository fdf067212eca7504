"""``samespace gallery serve | add | search | key | stats``, and the commands of an upgrade."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from samespace.cloud.cli.gallery_add import add
from samespace.cloud.cli.gallery_keys import app as keys_app
from samespace.cloud.cli.gallery_stats import stats
from samespace.cloud.cli.gallery_upgrade import add_commands

__all__ = ["app"]

_URL = "http://127.0.0.1:8765"

app = typer.Typer(
    help="Serve a gallery, add images to it, search it, upgrade it.",
    epilog="Example: samespace gallery serve --bundle cloud.samespace --data ./gallery",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(keys_app, name="key")
app.command(epilog="Example: samespace gallery add photos/ --bundle cloud.samespace")(add)
app.command(epilog="Example: samespace gallery stats --gallery http://127.0.0.1:8765")(stats)
add_commands(app)

_Bundle = Annotated[Path, typer.Option("--bundle", help="The bundle that embeds.", show_default=False)]
_Gallery = Annotated[str, typer.Option("--gallery", help="URL of the service.")]
_Runtime = Annotated[
    str | None, typer.Option("--runtime", help="Runtime for the bundle; by default the first that works here.")
]
_Unsigned = Annotated[bool, typer.Option("--allow-unsigned", help="Take bundles that nobody trusted has signed (logged).")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


@app.command(epilog="Example: samespace gallery serve --bundle cloud.samespace --data ./gallery")
def serve(
    bundle: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundle",
            help="The cloud model's bundle: founds its space, if it is not there yet. Repeat it with the bundles of devices: "
            "their handshakes are then judged by their own model's embeddings, and mistakes are named.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of an embedded PostgreSQL. [default: the user's data folder]")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option("--database", envvar="SAMESPACE_GALLERY_DATABASE", help="URL of a PostgreSQL with pgvector instead."),
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Keep nothing: all in memory.")] = False,
    index: Annotated[str | None, typer.Option("--index", help="Another vector index than the store's own.")] = None,
    index_url: Annotated[str, typer.Option("--index-url", help="URL of the index's own server, if it has one.")] = "",
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage", help="How pgvector's index keeps vectors: float32, halfvec or binary; hits are ranked exactly."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen at; 0 takes a free one.", min=0, max=65535)] = 8765,
    keys: Annotated[
        str, typer.Option("--keys", help="Ask for API keys: on, off, or auto: when there are any, or --host is not local.")
    ] = "auto",
    unverified: Annotated[
        str, typer.Option("--unverified", help="A device that does not fit: refuse it, or warn: it may search, with a warning.")
    ] = "refuse",
    drifting: Annotated[
        str, typer.Option("--drifting", help="A kind of device whose queries moved away: warn, or refuse it.")
    ] = "warn",
    rate: Annotated[
        float, typer.Option("--rate", help="Requests a second of each API key, or address without keys; 0: any.", min=0)
    ] = 0.0,
    max_body: Annotated[int, typer.Option("--max-body", help="MiB of a request.", min=1, max=1024)] = 24,
    connections: Annotated[int, typer.Option("--connections", help="Open at once.", min=1)] = 2048,
    drain: Annotated[
        float, typer.Option("--drain", help="Seconds between saying 'not ready' and stopping, when told to stop.", min=0)
    ] = 0.0,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="One JSON line on stderr for each request.")] = False,
    secret_file: Annotated[
        Path | None,
        typer.Option("--secret-file", help="32 or more bytes that sign tokens: the same for all instances of one service."),
    ] = None,
    runtime: _Runtime = None,
    allow_unsigned: _Unsigned = False,
    as_json: _Json = False,
) -> None:
    """Serve a gallery until Ctrl-C; prints one line when it is ready."""
    from samespace.cloud.gallery.serve import Address, serve_gallery
    from samespace.cloud.gallery.serve_options import serve_options

    options = serve_options(
        keys=keys,
        unverified=unverified,
        drifting=drifting,
        rate=rate,
        max_body=max_body,
        connections=connections,
        drain=drain,
        log_requests=log_requests,
        secret_file=secret_file,
        storage=storage,
    )

    def ready(url: str, place: str, spaces: list[dict[str, str | int]]) -> None:
        if as_json:
            print(json.dumps({"url": url, "store": place, "spaces": spaces}), flush=True)
            return
        held = ", ".join(f"{space['name']} ({space['space_id']}, {space['items']} items)" for space in spaces)
        print(f"ready: {url} serves {held or 'no space yet'}, kept in {place}", flush=True)

    serve_gallery(
        Address(host, port),
        bundle=bundle,
        data=data,
        database=database,
        memory=memory,
        index=index,
        index_url=index_url,
        runtime=runtime,
        allow_unsigned=allow_unsigned,
        options=options,
        ready=ready,
    )


@app.command(epilog="Example: samespace gallery search query.jpg --bundle phone.samespace -k 5")
def search(
    image: Annotated[Path, typer.Argument(help="The image to look for.")],
    bundle: _Bundle,
    gallery: _Gallery = _URL,
    k: Annotated[int, typer.Option("-k", help="How many hits.", min=1, max=1000)] = 5,
    runtime: _Runtime = None,
    allow_unsigned: _Unsigned = False,
    as_json: _Json = False,
) -> None:
    """Embed an image with a device's bundle, shake hands with the gallery, and print the nearest items."""
    from samespace.sdk.gallery.client import GalleryClient

    with GalleryClient.open(gallery, bundle, runtime=runtime, allow_unsigned=allow_unsigned) as client:
        query = client.embedder.embed(image)
        hits = client.search(query, k)
        model_id = client.embedder.model_id
    if as_json:
        print(json.dumps({"query": str(image), "model_id": model_id, "hits": [hit.model_dump() for hit in hits]}))
        return
    if not hits:
        print("the gallery is empty; fill it with 'samespace gallery add'", file=sys.stderr)
    for rank, hit in enumerate(hits, start=1):
        what = hit.metadata.get("path") or hit.item_id
        label = hit.metadata.get("label")
        print(f"{rank:3d}  {hit.score:6.3f}  {what}{f'  ({label})' if label else ''}")
