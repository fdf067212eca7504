"""``samespace gallery upgrade | backfill | promote | rollback | pause | resume | finish``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from samespace.sdk.cli.progress import progress
from samespace.sdk.errors import ConfigError, DataError

if TYPE_CHECKING:
    from samespace.sdk.gallery.client import GalleryClient
    from samespace.sdk.gallery.wire_upgrade import DecisionAction, UpgradeState

__all__ = ["add_commands"]

#: Of items that could not be embedded anew, so many are named on stderr.
_NAMED = 20

_Gallery = Annotated[str, typer.Option("--gallery", help="URL of the service.")]
_Key = Annotated[
    str | None,
    typer.Option("--key", envvar="SAMESPACE_GALLERY_KEY", help="An API key of that service; an administrator's to decide."),
]
_Space = Annotated[str | None, typer.Option("--space", help="Id of the space; not needed where there is one.")]
_Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
_Runtime = Annotated[
    str | None, typer.Option("--runtime", help="Runtime for the bundle; by default the first that works here.")
]
_Unsigned = Annotated[bool, typer.Option("--allow-unsigned", help="Take bundles that nobody trusted has signed (logged).")]
_URL = "http://127.0.0.1:8765"


def add_commands(app: typer.Typer) -> None:
    """The commands that upgrade a gallery, as commands of ``app``."""
    example = "Example: samespace gallery "
    app.command(epilog=example + "upgrade --bundle new.samespace --report upgrade.json")(upgrade)
    app.command(epilog=example + "backfill photos/ --bundle new.samespace --order uncertainty --adapter forward.safetensors")(
        backfill
    )
    app.command(epilog=example + "promote")(promote)
    app.command(epilog=example + "rollback")(rollback)
    app.command(epilog=example + "pause")(pause)
    app.command(epilog=example + "resume")(resume)
    app.command(epilog=example + "finish")(finish)


def upgrade(
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="The new model's bundle; without it, only say where the upgrade stands.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="What 'samespace report NEW_RUN --json FILE' wrote.")
    ] = None,
    gallery: _Gallery = _URL,
    key: _Key = None,
    space: _Space = None,
    signer: Annotated[
        Path | None, typer.Option("--signer", help="Key that vouches for the report. [default: the one of 'samespace keys']")
    ] = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Do not sign: only for a service that allows it.")] = False,
    runtime: _Runtime = None,
    allow_unsigned: _Unsigned = False,
    as_json: _Json = False,
) -> None:
    """Register a new model with its upgrade report, or say where an upgrade stands. Nothing is embedded anew.

    The report is judged by the service, by the bars that were saved with it. Until 'promote' the old model serves.
    """
    from samespace.cloud.gallery import remote_upgrade
    from samespace.sdk.gallery.client import GalleryClient
    from samespace.sdk.signing import SigningKey

    if (bundle is None) != (report is None):
        raise ConfigError("a new model is registered by both: --bundle FILE and --report FILE")
    if bundle is None or report is None:
        with _service(gallery, key, space) as (client, space_id):
            _say(remote_upgrade.state(client, space_id), as_json)
        return
    content = _read(report)
    signing = None if unsigned else SigningKey.load(signer)
    opened = GalleryClient.open(gallery, bundle, runtime=runtime, allow_unsigned=allow_unsigned, api_key=key)
    with opened as client:
        _say(remote_upgrade.register(client, content, signing), as_json)


def backfill(
    images: Annotated[Path, typer.Argument(help="What was added: a folder of images, or a table with the column 'path'.")],
    bundle: Annotated[Path, typer.Option("--bundle", help="The new model's bundle.", show_default=False)],
    gallery: _Gallery = _URL,
    key: _Key = None,
    order: Annotated[
        str,
        typer.Option("--order", help="What goes first: uncertainty (needs --adapter), traffic (--traffic), random, oldest."),
    ] = "oldest",
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="Maps old embeddings; fitted by 'samespace adapters fit --method network'.")
    ] = None,
    traffic: Annotated[
        Path | None, typer.Option("--traffic", help="CSV table with item_id and queries: how often each is looked for.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the order random.", min=0)] = 0,
    rate: Annotated[float, typer.Option("--rate", help="Images a second at most; 0: as fast as it goes.", min=0)] = 0.0,
    batch: Annotated[int, typer.Option("--batch", help="Images that are embedded and kept together.", min=1, max=1024)] = 64,
    limit: Annotated[int | None, typer.Option("--limit", help="Stop after so many images.", min=1)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail (at the end) when a picture is missing or broken.")] = False,
    runtime: _Runtime = None,
    allow_unsigned: _Unsigned = False,
    as_json: _Json = False,
) -> None:
    """Embed anew what only the old model embedded, most useful first; run it again to go on where it was stopped.

    All items are found meanwhile, each by the embedding that it has. It may run before or after 'promote'.
    """
    from samespace.cloud.gallery.backfill import Order, Pictures, plan_backfill, read_traffic
    from samespace.cloud.gallery.backfill import backfill as embed_anew
    from samespace.sdk.adapter import read_adapter
    from samespace.sdk.gallery.client import GalleryClient

    if order not in get_args(Order):
        raise ConfigError(f"--order {order}: is none of {', '.join(get_args(Order))}")
    mapper = None if adapter is None else read_adapter(adapter)
    visits = None if traffic is None else read_traffic(traffic)
    pictures = Pictures(images)
    opened = GalleryClient.open(gallery, bundle, runtime=runtime, allow_unsigned=allow_unsigned, api_key=key)
    with opened as client:
        work = plan_backfill(client, cast("Order", order), adapter=mapper, traffic=visits, seed=seed)[:limit]
        with progress(f"Backfilling {gallery}", len(work)) as bar:
            report = embed_anew(client, work, pictures, rate=rate, batch=batch, advance=bar.advance)
    if as_json:
        print(json.dumps({"kept": report.kept, "changed": report.changed, "missing": report.missing}))
    else:
        print(f"{report.kept} embedded anew, {report.changed} were changed meanwhile, {len(report.missing)} have no picture")
    if report.missing:
        some = "; ".join(f"{item_id}: {reason}" for item_id, reason in list(report.missing.items())[:_NAMED])
        message = f"{len(report.missing)} of {len(work)} items stay as the old model embedded them. {some}"
        if strict:
            raise DataError(message)
        typer.echo(message, err=True)


def promote(
    gallery: _Gallery = _URL,
    key: _Key = None,
    space: _Space = None,
    force: Annotated[
        str, typer.Option("--force", metavar="REASON", help="Promote although the verdict does not allow it; recorded.")
    ] = "",
    as_json: _Json = False,
) -> None:
    """Let the new model serve, at once. Refused unless the upgrade's verdict is 'pass'."""
    _decide(gallery, key, space, "promote", as_json, force)


def rollback(gallery: _Gallery = _URL, key: _Key = None, space: _Space = None, as_json: _Json = False) -> None:
    """Let the old model serve again, at once; what the new one embedded stays."""
    _decide(gallery, key, space, "roll back", as_json)


def pause(gallery: _Gallery = _URL, key: _Key = None, space: _Space = None, as_json: _Json = False) -> None:
    """Let every backfill of the space wait."""
    _decide(gallery, key, space, "pause", as_json)


def resume(gallery: _Gallery = _URL, key: _Key = None, space: _Space = None, as_json: _Json = False) -> None:
    """Let the backfill go on."""
    _decide(gallery, key, space, "resume", as_json)


def finish(gallery: _Gallery = _URL, key: _Key = None, space: _Space = None, as_json: _Json = False) -> None:
    """End the upgrade: forget what the model that does not serve embedded. Refused while anything would be lost."""
    from samespace.cloud.gallery import remote_upgrade

    with _service(gallery, key, space) as (client, space_id):
        steps = remote_upgrade.finish(client, space_id)
        last = next(steps)
        with progress(f"Finishing {space_id}", last) as bar:
            for left in steps:
                bar.advance(last - left)
                last = left
    print(json.dumps({"space_id": space_id, "left": last}) if as_json else f"{space_id}: the upgrade has ended")


def _decide(gallery: str, key: str | None, space: str | None, action: DecisionAction, as_json: bool, force: str = "") -> None:
    from samespace.cloud.gallery import remote_upgrade

    with _service(gallery, key, space) as (client, space_id):
        _say(remote_upgrade.decide(client, space_id, action, force), as_json)


@contextmanager
def _service(gallery: str, key: str | None, space: str | None) -> Iterator[tuple[GalleryClient, str]]:
    """A client without a model, and the id of the space that is meant."""
    from samespace.sdk.gallery.client import GalleryClient

    with GalleryClient(gallery, api_key=key) as client:
        if space is None:
            there = [state.space_id for state in client.health().spaces]
            if len(there) != 1:
                raise ConfigError(f"{gallery} serves {', '.join(there) or 'no space'}; say which one is meant: --space ID")
            space = there[0]
        yield client, space


def _say(state: UpgradeState, as_json: bool) -> None:
    if as_json:
        print(state.model_dump_json())
        return
    serving = "the new model serves" if state.promoted else "the old model serves"
    print(f"{state.space_id}: {state.old_model_id} -> {state.new_model_id}; {serving}{', paused' if state.paused else ''}")
    print(f"verdict: {state.outcome}{''.join(f'; {reason}' for reason in state.reasons)}")
    share = f" ({100 * state.embedded / state.items:.1f} %)" if state.items else ""
    print(f"items: {state.items}, {state.embedded}{share} by the new model, {state.only_new} by it alone")
    for event in state.events:
        by, forced = (f" by {event.by}" if event.by else ""), (f", forced: {event.force}" if event.force else "")
        print(f"  {event.at}  {event.action}{by}{forced}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}); write one with samespace report NEW_RUN --json {file}"
        ) from None
