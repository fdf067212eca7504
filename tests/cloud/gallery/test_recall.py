"""The recall that a gallery states of itself: measured, kept, shown, and wrong for no index that loses rows."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.base import Hit, StoredItem
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.recall import is_due, measure_recall, measured_beside, state_recall, stated_recall
from samespace.cloud.gallery.shelf import MemoryShelf
from samespace.cloud.gallery.stores import open_stores
from samespace.sdk.errors import ConfigError

from .index_machine import units

MODEL = "m-" + "a" * 32


def filled(index: MemoryIndex, n: int = 1500) -> MemoryIndex:
    index.prepare(MODEL, 8)
    rows = units(np.random.default_rng(0), n, 8)
    # Some vectors twice, so that there are ties.
    rows[1::50] = rows[::50]
    index.upsert(MODEL, [StoredItem(f"{number:05d}", row) for number, row in enumerate(rows)])
    return index


class Misses(MemoryIndex):
    """Finds the second-nearest never: of ten nearest items other than the query itself, one is missing."""

    def describe(self, model_id: str) -> str:
        return "a sieve"

    def search(self, model_id: str, queries: np.ndarray, k: int, **options: Any) -> list[list[Hit]]:
        return [hits[:1] + hits[2:] for hits in super().search(model_id, queries, k, **options)]


def test_an_exact_index_has_recall_one_with_an_interval_below_it() -> None:
    stated = measure_recall(filled(MemoryIndex()), MODEL, n=60)
    assert stated is not None
    assert (stated.recall, stated.high, stated.n, stated.items, stated.index) == (1.0, 1.0, 60, 1500, "memory")
    assert stated.low == pytest.approx(0.95)


def test_what_an_index_misses_is_counted() -> None:
    stated = measure_recall(filled(Misses()), MODEL, n=60)
    assert stated is not None
    # A lost second of two equals may be the query itself.
    assert 0.9 <= stated.recall <= 0.91
    assert stated.low <= stated.recall <= stated.high
    assert stated.index == "a sieve"


def test_a_gallery_of_no_more_than_k_items_states_nothing() -> None:
    assert measure_recall(filled(MemoryIndex(), 10), MODEL) is None


def test_it_is_measured_when_the_index_is_new_or_has_doubled() -> None:
    index, shelf = filled(MemoryIndex(), 1100), MemoryShelf()
    with measured_beside(index, shelf, [MODEL]):
        next(thread for thread in threading.enumerate() if thread.name == "recall").join(60)
    first = stated_recall(shelf, MODEL)
    assert first is not None
    assert (first.items, is_due(index, first, MODEL)) == (1100, False)
    assert is_due(filled(index, 2300), first, MODEL)
    assert is_due(filled(Misses(), 1100), first, MODEL), "kept otherwise"
    assert not is_due(filled(MemoryIndex(), 999), None, MODEL), "so few are compared one by one"
    shelf.put("recall", MODEL, b"{}")
    assert stated_recall(shelf, MODEL) is None


def test_a_measurement_ends_with_the_service() -> None:
    asked = threading.Event()

    class Endless(MemoryIndex):
        def scan(self, model_id: str, after: str, limit: int) -> list[StoredItem]:
            asked.set()
            return super().scan(model_id, "", 1)

    index, shelf = filled(Endless(), 1100), MemoryShelf()
    with measured_beside(index, shelf, [MODEL]):
        assert asked.wait(30)
    assert "recall" not in {thread.name for thread in threading.enumerate()}
    assert stated_recall(shelf, MODEL) is None


@pytest.mark.database
@pytest.mark.parametrize("storage", ["float32", "binary"])
def test_stats_measures_keeps_and_shows_it(used_folder: Path, gallery_world, storage: str) -> None:
    with open_stores(data=used_folder, storage=storage) as stores, Gallery(stores.registry, stores.index) as gallery:
        gallery_world.founded(gallery)
        (summary,) = gallery.spaces()
        rows = units(np.random.default_rng(1), 1200, gallery_world.dim)
        stores.index.upsert(summary.serving_model_id, [StoredItem(f"{n:04d}", row) for n, row in enumerate(rows)])
        kept = state_recall(stores.index, gallery.shelf, summary.serving_model_id)
        assert kept is not None
        assert (kept.index, kept.n, kept.items) == (f"pgvector {storage}", 200, 1200)
        # The signs of 24 random numbers tell little; that is why the recall is stated.
        assert (kept.recall >= 0.99) if storage == "float32" else (0.9 < kept.recall < 0.99)
    command = [
        sys.executable,
        "-c",
        "from samespace.sdk.cli import main; main()",
        "gallery",
        "stats",
        "--data",
        str(used_folder),
    ]
    shown = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(shown.stdout)["spaces"][0]["recall"] == kept.model_dump()


def test_a_service_tells_its_recall(serve, gallery_world, capsys) -> None:
    from samespace.sdk.cli import main

    served = serve("--memory", "--bundle", str(gallery_world.bundle("cloud")))
    with pytest.raises(SystemExit) as end:
        main(["gallery", "stats", "--gallery", served.url])
    assert not end.value.code
    assert capsys.readouterr().out == f"tests ({gallery_world.space.space_id}): 0 items; recall not measured\n"


def test_storages_are_of_pgvector_only() -> None:
    with pytest.raises(ConfigError, match="only the index 'pgvector'"), open_stores(memory=True, storage="binary"):
        pass
