"""All vector indexes under one random schedule: equal answers, and a planted defect that is seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from samespace.cloud.gallery.indexes.base import Hit, StoredItem
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.indexes.pgvector import PgVectorIndex
from samespace.cloud.gallery.indexes.pgvector_storage import index_name, storage_of
from samespace.cloud.gallery.postgres import Database
from samespace.cloud.gallery.registries.postgres import PostgresRegistry
from samespace.cloud.gallery.registry import SERVING
from samespace.sdk.errors import ConfigError, GalleryError

from .index_machine import SPACES, Recall, Subject, in_memory, machine, units

#: No more than this may be missing of the exact answers, over all schedules.
RECALL = 0.98


def run(fresh: Callable[[], Mapping[str, Subject]], *, examples: int, steps: int = 30, shrink: bool = True) -> Recall:
    """Raises what the machine raises for the first index that answers otherwise than the oracle."""
    recall = Recall()
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=checks,
        print_blob=False,
    )
    run_state_machine_as_test(machine(fresh, recall), settings=options)
    return recall


@pytest.fixture
def approximating(postgres_url: str) -> Iterator[Database]:
    """A database that must not sort: with the few rows of a test it would, instead of asking the index."""
    database = Database(f"{postgres_url}&options=-c%20enable_sort%3Doff", connections=1)
    yield database
    database.close()


def emptied(database: Database, index: PgVectorIndex) -> Subject:
    """An index and a registry in one database, where the aliases are, without items."""
    registry = PostgresRegistry(database)
    with database.transaction() as connection:
        connection.execute("TRUNCATE items, aliases")
        for space, models in SPACES.items():
            connection.execute("INSERT INTO spaces (space_id, record) VALUES (%s, '{}') ON CONFLICT DO NOTHING", (space,))
            for model in models:
                statement = "INSERT INTO models (model_id, space_id, entry) VALUES (%s, %s, '{}') ON CONFLICT DO NOTHING"
                connection.execute(statement, (model, space))
    return Subject(
        index, lambda space, model: registry.set_alias(space, SERVING, model), lambda space: registry.alias(space, SERVING)
    )


@pytest.mark.database
@pytest.mark.parametrize(("storage", "examples"), [("float32", 20), ("halfvec", 8), ("binary", 8)])
def test_pgvector_answers_as_the_oracle_does(approximating: Database, storage: str, examples: int) -> None:
    index = PgVectorIndex(approximating, storage)
    recall = run(lambda: {"pgvector": emptied(approximating, index)}, examples=examples)
    assert recall.searches > 30
    assert recall.value >= RECALL, recall
    assert _index_scans(approximating) > 15, "the approximate searches did not use the index"


@pytest.mark.database
@pytest.mark.parametrize(("storage", "recall"), [("float32", 0.99), ("halfvec", 0.99), ("binary", 0.98)])
def test_storages_find_nearly_all_and_score_exactly(approximating: Database, storage: str, recall: float) -> None:
    index, model, generator = PgVectorIndex(approximating, storage), SPACES["one"][0], np.random.default_rng(1)
    index.prepare(model, 64)
    # Rows around centres, as embeddings of pictures lie.
    rows = generator.normal(size=(30, 64))[generator.integers(0, 30, 2500)] + 0.6 * generator.normal(size=(2500, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    index.upsert(model, [StoredItem(f"{number:04d}", row, {"odd": number % 2}) for number, row in enumerate(rows[:2450])])
    index.delete(model, [f"{number:04d}" for number in range(0, 2450, 5)])
    assert index.count(model) == 1960
    for where in ({}, {"odd": 1}):
        exact = index.search(model, rows[2450:], 10, exact=True, where=where)
        quick = index.search(model, rows[2450:], 10, where=where)
        found = [len({hit.item_id for hit in a} & {hit.item_id for hit in b}) for a, b in zip(exact, quick, strict=True)]
        assert np.mean(found) / 10 >= recall
        scores = {(row, hit.item_id): hit.score for row, hits in enumerate(exact) for hit in hits}
        assert all(hit.score == scores.get((row, hit.item_id), hit.score) for row, hits in enumerate(quick) for hit in hits)
    with approximating.transaction() as connection:
        row = connection.execute("SELECT pg_relation_size(%s)", (index_name(model, storage_of(storage)),)).fetchone()
    # Below 64 x 4, 64 x 2 and 64 / 8 bytes a vector no index could be; links and page headers come on top.
    assert row is not None
    assert row[0] / 2450 < {"float32": 800, "halfvec": 500, "binary": 380}[storage]


@pytest.mark.database
def test_a_change_of_storage_leaves_one_index(approximating: Database) -> None:
    model = SPACES["one"][0]
    for storage in ("float32", "binary", "halfvec"):
        PgVectorIndex(approximating, storage).prepare(model, 8)
        with approximating.transaction() as connection:
            rows = connection.execute("SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%hnsw%'").fetchall()
        assert rows == [(index_name(model, storage_of(storage)),)]
    # Who does not say which finds it as it is: a command on the store must not build the index again.
    opened = PgVectorIndex(approximating)
    opened.prepare(model, 8)
    assert opened.describe(model) == "pgvector halfvec"
    with pytest.raises(ConfigError, match="int4: choose one of float32, halfvec, binary"):
        PgVectorIndex(approximating, "int4")


@pytest.mark.database
def test_batches_of_every_size_are_merged_alike(approximating: Database) -> None:
    """By arrays and by COPY, two of one transaction, and the last of equal ids."""
    index, oracle, model = PgVectorIndex(approximating), MemoryIndex(), SPACES["one"][0]
    generator = np.random.default_rng(2)
    for subject in (index, oracle):
        subject.prepare(model, 8)
    with approximating.transaction():
        for size in (1, 499, 700, 1200):
            rows = units(generator, size, 8)
            items = [StoredItem(f"ä{generator.integers(1500)}", row, {"n": n, "of": "it's\t\\N"}) for n, row in enumerate(rows)]
            for subject in (index, oracle):
                subject.upsert(model, items)
    told = [[(i.item_id, i.vector.tobytes(), dict(i.metadata)) for i in s.scan(model, "", 2000)] for s in (index, oracle)]
    assert told[0] == told[1]
    assert len(told[0]) > 700


def _index_scans(database: Database) -> int:
    with database.transaction() as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
    with database.transaction() as connection:
        row = connection.execute(
            "SELECT sum(idx_scan)::int FROM pg_indexes JOIN pg_stat_user_indexes ON indexname = indexrelname "
            "WHERE indexdef LIKE '%hnsw%'"
        ).fetchone()
    assert row is not None
    return row[0]


class ForgetsDeletes(MemoryIndex):
    """Keeps the last of several that it is told to delete."""

    def delete(self, model_id: str, ids: Sequence[str]) -> int:
        there = sorted(self.known(model_id, ids))
        super().delete(model_id, there[:1] if len(there) < 2 else there[:-1])
        return len(there)


class IgnoresFilters(MemoryIndex):
    def search(self, *arguments: Any, **options: Any) -> list[list[Hit]]:
        return super().search(*arguments, **{**options, "where": None})


class FiltersAfterwards(MemoryIndex):
    """Looks for the nearest, and then at what they are: fewer than there are."""

    def search(self, model_id: str, queries: np.ndarray, k: int, **options: Any) -> list[list[Hit]]:
        where = options.pop("where", None)
        found = super().search(model_id, queries, k, **options)
        allowed = [{hit.item_id for hit in hits} for hits in super().search(model_id, queries, 1000, where=where)]
        return [[hit for hit in hits if hit.item_id in ids] for hits, ids in zip(found, allowed, strict=True)]


class ComparesValuesAsText(MemoryIndex):
    def upsert(self, model_id: str, items: Sequence[StoredItem]) -> None:
        self.told = {**getattr(self, "told", {}), **{(model_id, item.item_id): item.metadata for item in items}}
        super().upsert(model_id, items)

    def search(self, model_id: str, queries: np.ndarray, k: int, **options: Any) -> list[list[Hit]]:
        where = {name: str(value) for name, value in (options.pop("where", None) or {}).items() if not isinstance(value, list)}
        found = super().search(model_id, queries, 1000, **options)
        return [
            [hit for hit in hits if all(str(hit.metadata.get(name)) == value for name, value in where.items())][:k]
            for hits in found
        ]


class BreaksTies(MemoryIndex):
    """Equal scores in the order in which they came."""

    def search(self, model_id: str, queries: np.ndarray, k: int, **options: Any) -> list[list[Hit]]:
        found = super().search(model_id, queries, 1000, **options)
        order = list(self._models[model_id])
        return [sorted(hits, key=lambda hit: (-hit.score, order.index(hit.item_id)))[:k] for hits in found]


class SkipsEqualsAtThePage(MemoryIndex):
    """Goes on behind the score of the last hit, not behind the hit."""

    def search(self, model_id: str, queries: np.ndarray, k: int, **options: Any) -> list[list[Hit]]:
        after = options.get("after")
        found = super().search(model_id, queries, 1000, **options)
        return [[hit for hit in hits if after is None or hit.score < after[0]][:k] for hits in found]


class ScansInOrderOfArrival(MemoryIndex):
    def scan(self, model_id: str, after: str, limit: int) -> list[StoredItem]:
        return [item for item in self._models[model_id].values() if item.item_id > after][:limit]


class KeepsOldMetadata(MemoryIndex):
    def upsert(self, model_id: str, items: Sequence[StoredItem]) -> None:
        old = self.get(model_id, [item.item_id for item in items])
        super().upsert(
            model_id,
            [StoredItem(i.item_id, i.vector, old[i.item_id].metadata if i.item_id in old else i.metadata) for i in items],
        )


class KeepsTheFirstOfEqualIds(MemoryIndex):
    def upsert(self, model_id: str, items: Sequence[StoredItem]) -> None:
        super().upsert(model_id, items[::-1])


class ClearsAtASwitch(MemoryIndex):
    """Takes the second time that it makes room for a first one."""

    def prepare(self, model_id: str, dim: int) -> None:
        self._models.pop(model_id, None)
        self._matrices.pop(model_id, None)
        super().prepare(model_id, dim)


class MixesModels(MemoryIndex):
    """One table for all models, and the filter by model forgotten where a batch is counted."""

    def prepare(self, model_id: str, dim: int) -> None:
        super().prepare(model_id, dim)
        if dim == 8:
            self._models[model_id] = self.__dict__.setdefault("_common", {})


class IgnoresTheOther(MemoryIndex):
    """Finds old embeddings of items that were embedded anew."""

    def search(self, *arguments: Any, **options: Any) -> list[list[Hit]]:
        return super().search(*arguments, **{**options, "without": None})


class MissesSome(MemoryIndex):
    """An approximate search that gives up early, one time in four."""

    searches = 0

    def search(self, model_id: str, queries: np.ndarray, k: int, **options: Any) -> list[list[Hit]]:
        found = super().search(model_id, queries, k, **options)
        if options.get("exact"):
            return found
        self.searches += 1
        return [hits[1:] if self.searches % 4 == 0 else hits for hits in found]


DEFECTS = [
    ForgetsDeletes,
    IgnoresFilters,
    FiltersAfterwards,
    ComparesValuesAsText,
    BreaksTies,
    SkipsEqualsAtThePage,
    ScansInOrderOfArrival,
    KeepsOldMetadata,
    KeepsTheFirstOfEqualIds,
    ClearsAtASwitch,
    MixesModels,
    IgnoresTheOther,
]


def test_the_oracle_agrees_with_itself() -> None:
    assert run(lambda: {"memory": in_memory(MemoryIndex())}, examples=20).value == 1.0


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_seen(defect: type[MemoryIndex]) -> None:
    with pytest.raises(AssertionError, match="planted: "):
        run(lambda: {"planted": in_memory(defect())}, examples=60, shrink=False)


def test_too_low_a_recall_is_seen() -> None:
    assert run(lambda: {"planted": in_memory(MissesSome())}, examples=40).value < RECALL


@pytest.mark.database
def test_a_defect_in_sql_is_seen(approximating: Database) -> None:
    class Deaf(PgVectorIndex):
        def search(self, *arguments: Any, **options: Any) -> list[list[Hit]]:
            return super().search(*arguments, **{**options, "where": None})

    index = Deaf(approximating)
    with pytest.raises(AssertionError, match="pgvector: "):
        run(lambda: {"pgvector": emptied(approximating, index)}, examples=30, shrink=False)


@pytest.mark.database
def test_a_batch_is_stored_whole_or_not_at_all(approximating: Database) -> None:
    index = PgVectorIndex(approximating)
    model = SPACES["one"][0]
    index.prepare(model, 8)
    good = StoredItem("good", np.eye(8, dtype=np.float32)[0])
    with pytest.raises(GalleryError, match="dimensions"):
        index.upsert(model, [good, StoredItem("bad", np.eye(5, dtype=np.float32)[0])])
    assert index.count(model) == 0
