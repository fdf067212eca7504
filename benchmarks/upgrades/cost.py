"""What an upgrade of a large gallery costs: without a backfill, with an adapter, and with one, as far as it is measured.

The gallery is a real service on a real database, with the vectors of ``benchmarks/gallery``; its two small models are those of
the tests, the successor's vectors are the old ones with some noise. Times do not depend on what the vectors mean.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "gallery"))

import numpy as np
import numpy.typing as npt
from dataset import Dataset, item_id, open_world, seeds_of
from filled import filled, service
from learnt import Learnt, material

from samespace.cloud.adapters.fit import fit
from samespace.cloud.evaluation import embed
from samespace.cloud.gallery.remote_upgrade import decide, register
from samespace.export.run import read_run
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.gallery.wire import API, Vectors
from samespace.sdk.gallery.wire_upgrade import BackfillBatch, Backfilled
from samespace.sdk.identity import digest

__all__ = ["measure_models", "measure_service"]

K, QUERIES, BATCH = 10, 100, 64

Rows = npt.NDArray[np.float32]


def measure_service(folder: Path, size: str, n: int, moved: int) -> dict[str, Any]:
    """Seconds of each step at ``n`` vectors, and median milliseconds of searches; once, then kept in the folder.

    Args:
        folder: of the database.
        size: of the pictures that the vectors are made of.
        moved: items that are embedded anew.
    """
    kept = folder / f"{n}.json"
    if kept.exists():
        return json.loads(kept.read_bytes())
    place = folder / str(n)
    place.mkdir(parents=True, exist_ok=True)
    world = open_world(folder / "world")
    data = Dataset(seeds_of(world, size))
    with (
        filled(place, world, data, n) as store,
        service(store.url, world.bundle("cloud")) as (url, _),
        GalleryClient.open(url, world.bundle("cloud")) as old,
        GalleryClient.open(url, world.bundle("successor")) as new,
    ):
        queries, space_id = data.queries(QUERIES), old.embedder.space_id
        old.search(queries[0], K)
        told: dict[str, Any] = {"n": n, "old_before_ms": _median(old, queries)}
        report = world.upgrade_report("successor").model_dump_json().encode()
        told["register_s"], _ = _timed(lambda: register(new, report, world.signer))
        told["first_search_s"], hits = _timed(lambda: new.search(queries[0], K))
        told["promote_s"], state = _timed(lambda: decide(new, space_id, "promote"))
        told |= {"found_at_once": len(hits), "embedded_anew": state.embedded, "new_promoted_ms": _median(new, queries)}
        told["old_promoted_ms"] = _median(old, queries)
        rows = data.rows(moved)
        seconds, kept_items = _timed(lambda: _backfill(new, rows))
        told |= {"backfilled": kept_items, "backfill_per_s": kept_items / seconds, "new_mixed_ms": _median(new, queries)}
        told["roll_back_s"], _ = _timed(lambda: decide(new, space_id, "roll back"))
        told["old_after_ms"] = _median(old, queries)
    kept.write_text(json.dumps(told, indent=1))
    return told


def measure_models(learnt: Learnt, n: int) -> dict[str, float]:
    """Seconds to fit an adapter and to map ``n`` vectors by it, and how many pictures a second the new model embeds here."""
    given = material(learnt)
    fitted_s, adapters = _timed(lambda: fit(given, "network", "forward"))
    adapter, rows = adapters["forward"], given.old.gallery
    block = np.concatenate([rows] * (1 + 20_000 // len(rows)))[:20_000]
    applied_s, _ = _timed(lambda: [adapter.apply(block) for _ in range(max(1, n // len(block)))])
    data = learnt.data()
    model = read_run(learnt.run(("bct", "cloud"))).models["cloud"]
    pictures = data.prepared(data.split.test_query, model.record.preprocess)
    network = model.build()
    embedded_s, _ = _timed(lambda: embed(network, pictures, model.record.preprocess))
    return {"fit_s": fitted_s, "map_s": applied_s, "pictures_per_s": len(pictures) / embedded_s}


def _backfill(client: GalleryClient, rows: Rows) -> int:
    generator, kept = np.random.default_rng(0), 0
    anew = rows + 0.02 * generator.normal(size=rows.shape).astype(np.float32)
    anew /= np.linalg.norm(anew, axis=1, keepdims=True)
    for start in range(0, len(rows), BATCH):
        part = range(start, min(start + BATCH, len(rows)))
        message = BackfillBatch(
            ids=tuple(map(item_id, part)),
            vectors=Vectors.of(anew[part.start : part.stop]),
            seen=tuple(digest(rows[row].tobytes()) for row in part),
        )
        kept += len(client.run(client.session.call("POST", f"{API}/backfill", Backfilled, message)).kept)
    return kept


def _median(client: GalleryClient, queries: Rows) -> float:
    """Milliseconds of a search, one after the other."""
    return 1e3 * float(np.median([_timed(lambda row=row: client.search(row, K))[0] for row in queries]))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found
