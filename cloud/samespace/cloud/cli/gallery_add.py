"""``samespace gallery add``."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from samespace.sdk.cli.progress import progress
from samespace.sdk.errors import ConfigError, DataError

__all__ = ["add"]

#: Of unreadable pictures, so many are named on stderr.
_NAMED = 20


def add(
    images: Annotated[Path, typer.Argument(help="A folder of images, or a CSV or Parquet table with the column 'path'.")],
    bundle: Annotated[Path, typer.Option("--bundle", help="The bundle that embeds.", show_default=False)],
    gallery: Annotated[str, typer.Option("--gallery", help="URL of the service.")] = "http://127.0.0.1:8765",
    batch: Annotated[int, typer.Option("--batch", help="Images that are embedded and added together.", min=1, max=1024)] = 128,
    workers: Annotated[
        int, typer.Option("--workers", help="Processes that embed; 0: one a core. 1 embeds in this process.", min=0, max=1024)
    ] = 0,
    gpu: Annotated[bool, typer.Option("--gpu", help="Embed on the GPU (onnxruntime with CUDA), in this process.")] = False,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Embed with Ray Data: 'local', or the address of a cluster whose machines see the files."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option("--ledger", help="File that a run which was killed goes on from. [default: one for each source]"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail (at the end) when a picture cannot be read.")] = False,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="Runtime for the bundle; by default the first that works here.")
    ] = None,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Take bundles that nobody trusted has signed (logged).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Embed images with the cloud bundle and add them; run it again to go on where it was stopped."""
    from samespace.cloud.gallery.bulk import add_in_bulk
    from samespace.cloud.gallery.ingest import find_images
    from samespace.cloud.gallery.ledger import Ledger
    from samespace.cloud.gallery.shards import Model, embedded_by_ray, embedded_here
    from samespace.sdk.gallery.client import GalleryClient
    from samespace.sdk.gallery.connection import Connection
    from samespace.sdk.gallery.disk import name_of
    from samespace.sdk.signing import config_dir

    if gpu and (workers > 1 or ray is not None):
        raise ConfigError("--gpu embeds in this process: leave out --workers and --ray")
    found = find_images(images)
    Connection(gallery)  # a wrong URL is said before a model is loaded
    count = 1 if gpu else workers or os.cpu_count() or 1
    providers = _cuda() if gpu else ()
    mine = Model(str(bundle), runtime, None, allow_unsigned, threads=0 if count == 1 else 1, providers=providers)
    with mine.open() as embedder, GalleryClient(gallery, embedder) as client:
        # Workers run what shook hands, whatever they would choose.
        artifact, name = embedder.runtime.artifact.spec.name, embedder.runtime_name
        model = Model(str(bundle.absolute()), name, artifact, allow_unsigned, threads=1, providers=providers)
        if ray is None:
            embed = partial(embedded_here, model=model, workers=min(count, -(-len(found) // batch)), embedder=embedder)
        else:
            embed = partial(embedded_by_ray, model=model, workers=count, address=None if ray == "local" else ray)
        identity = {"gallery": client.url, "space": embedder.space_id, "model": embedder.model_id}
        place = ledger or config_dir() / "ledgers" / name_of({**identity, "source": str(images.absolute())}, ".ledger")
        kept = Ledger(place, identity, embedder.dim)
        try:
            with progress(f"Adding {images}", len(found)) as bar:
                report = add_in_bulk(client, found, embed, kept, shard=batch, advance=bar.advance)
        finally:
            kept.close()
    if as_json:
        broken = [{"path": str(path), "reason": reason} for path, reason in report.broken]
        print(json.dumps({"added": report.added, "known": report.known, "copies": report.copies, "broken": broken}))
    else:
        print(f"{report.added} added, {report.known} were there already, {report.copies} are copies of others")
    if report.broken:
        message = f"{len(report.broken)} of {len(found)} images were left out. " + _named(report.broken)
        if strict:
            raise DataError(message)
        print(message, file=sys.stderr)


def _named(broken: list[tuple[Path, str]]) -> str:
    some = "; ".join(f"{path}: {reason}" for path, reason in broken[:_NAMED])
    return some + (f"; and {len(broken) - _NAMED} more (--json lists all)" if len(broken) > _NAMED else "")


def _cuda() -> tuple[str, ...]:
    """Providers of onnxruntime that embed on the GPU.

    Raises:
        ConfigError: this onnxruntime has none.
    """
    try:
        import onnxruntime

        have = onnxruntime.get_available_providers()
    except ImportError:
        have = []
    if "CUDAExecutionProvider" not in have:
        raise ConfigError(
            f"--gpu: onnxruntime has no CUDA here (it has {', '.join(have) or 'nothing'}); install onnxruntime-gpu, or leave "
            "out --gpu"
        )
    return ("CUDAExecutionProvider", "CPUExecutionProvider")
