"""``samespace gallery stats``: what a gallery holds and how much of it an approximate search finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from samespace.sdk.errors import ConfigError

__all__ = ["stats"]


def stats(
    gallery: Annotated[str | None, typer.Option("--gallery", help="URL of a running service.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", envvar="SAMESPACE_GALLERY_KEY", help="An API key of that service.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of an embedded PostgreSQL that nobody serves now, instead.")
    ] = None,
    database: Annotated[str | None, typer.Option("--database", help="URL of a PostgreSQL, instead.")] = None,
    storage: Annotated[str | None, typer.Option("--storage", help="With --measure: how the index keeps vectors.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the recall now, at the store (--data or --database), and keep it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Items of each space, and the stated recall of its approximate searches with its 95 % interval."""
    if (gallery is not None) + (data is not None) + (database is not None) != 1:
        raise ConfigError("say which gallery: one of --gallery URL, --data DIR and --database URL")
    if measure and gallery is not None:
        raise ConfigError("--measure reads every vector: do it at the store, with --data or --database")
    states = _of_service(gallery, key) if gallery is not None else _of_store(data, database, storage, measure)
    if as_json:
        print(json.dumps({"spaces": states}))
        return
    for state in states:
        print(f"{state['name']} ({state['space_id']}): {state['items']} items; {_words(state['recall'])}")
    if not states:
        print("no space yet")


def _words(stated: dict[str, Any] | None) -> str:
    if stated is None:
        return "recall not measured"
    return (
        f"recall@{stated['k']} {stated['recall']:.4f} [{stated['low']:.4f}, {stated['high']:.4f}] (n={stated['n']}, "
        f"{stated['items']} items, {stated['index']}, {stated['measured_at']})"
    )


def _of_service(url: str, key: str | None) -> list[dict[str, Any]]:
    from samespace.cloud.gallery.remote_keys import RemoteKeys

    with RemoteKeys(url, key or "") as service:
        return [
            {
                "space_id": state.space_id,
                "name": state.space.name,
                "items": state.items,
                "recall": None if state.recall is None else state.recall.model_dump(),
            }
            for state in service.health().spaces
        ]


def _of_store(data: Path | None, database: str | None, storage: str | None, measure: bool) -> list[dict[str, Any]]:
    from samespace.cloud.gallery.gallery import Gallery
    from samespace.cloud.gallery.recall import state_recall, stated_recall
    from samespace.cloud.gallery.stores import open_stores

    with open_stores(data=data, database=database, storage=storage) as stores, Gallery(stores.registry, stores.index) as opened:
        states = []
        for summary in opened.spaces():
            model_id = summary.serving_model_id
            stated = state_recall(stores.index, opened.shelf, model_id) if measure else stated_recall(opened.shelf, model_id)
            states.append(
                {
                    "space_id": summary.space.space_id,
                    "name": summary.space.name,
                    "items": summary.items,
                    "recall": None if stated is None else stated.model_dump(),
                }
            )
        return states
