"""All vector indexes, one random schedule, equal answers."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from samespace.cloud.gallery.indexes.base import Hit, StoredItem, VectorIndex
from samespace.cloud.gallery.indexes.pgvector import PgVectorIndex
from samespace.cloud.gallery.indexes.registry import INDEXES, open_index
from samespace.cloud.gallery.postgres import Database
from samespace.sdk.errors import ConfigError, GalleryError
from samespace.sdk.gallery.ranking import cosine_scores, ranked

MODELS = {"m-" + "a" * 32: 8, "m-" + "b" * 32: 8, "m-" + "c" * 32: 5}


#: Milvus needs more than this environment; test_milvus.py is about it.
HERE = [name for name in INDEXES if name != "milvus"]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.database if name == "pgvector" else []) for name in HERE])
def index(request: pytest.FixtureRequest) -> Iterator[VectorIndex]:
    url = request.getfixturevalue("postgres_url") if request.param == "pgvector" else ""
    opened = open_index(request.param, url)
    for model_id, dim in MODELS.items():
        opened.prepare(model_id, dim)
    yield opened
    opened.close()


def units(generator: np.random.Generator, n: int, dim: int) -> np.ndarray:
    rows = generator.normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class Plain:
    """The slow, obvious reference: a dictionary, and a loop over all of it."""

    items: dict[tuple[str, str], StoredItem] = field(default_factory=dict)

    def search(self, model_id: str, query: np.ndarray, k: int) -> list[tuple[str, float]]:
        scored = []
        for (owner, item_id), item in self.items.items():
            if owner == model_id:
                score = sum(float(a) * float(b) for a, b in zip(query, item.vector, strict=True))
                scored.append((item_id, round(score, 7)))
        return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:k]


def pairs(hits: list[Hit]) -> list[tuple[str, float]]:
    return [(hit.item_id, hit.score) for hit in hits]


@pytest.mark.parametrize("seed", range(4))
def test_a_random_schedule_gives_the_answers_of_the_plain_reference(index: VectorIndex, seed: int) -> None:
    generator, plain = np.random.default_rng(seed), Plain()
    names = [f"item-{number}" for number in range(30)] + ["ä/ö ü", "emoji 🙂", "a'b\"c;--", "%s", "Z", "z"]
    for step in range(40):
        model_id = list(MODELS)[generator.integers(len(MODELS))]
        chosen = [names[i] for i in generator.integers(0, len(names), generator.integers(0, 9))]
        action = generator.choice(["upsert", "upsert", "delete", "search", "get"])
        if action == "upsert":
            # Few distinct vectors, so that ties are common; an id may be in a batch twice.
            vectors = units(np.random.default_rng(seed), 12, MODELS[model_id])[generator.integers(0, 12, len(chosen))]
            items = [
                StoredItem(name, v, {"step": step, "n": i}) for i, (name, v) in enumerate(zip(chosen, vectors, strict=True))
            ]
            index.upsert(model_id, items)
            plain.items.update({(model_id, item.item_id): item for item in items})
        elif action == "delete":
            there = {name for name in chosen if plain.items.pop((model_id, name), None)}
            assert index.delete(model_id, chosen) == len(there)
        elif action == "get":
            there = {name for name in chosen if (model_id, name) in plain.items}
            found = index.get(model_id, chosen)
            assert found.keys() == there == index.known(model_id, chosen)
            for name, item in found.items():
                expected = plain.items[model_id, name]
                np.testing.assert_array_equal(item.vector, expected.vector)
                assert dict(item.metadata) == dict(expected.metadata)
        else:
            queries = units(generator, 3, MODELS[model_id])
            k = int(generator.integers(1, 12))
            for query, hits in zip(queries, index.search(model_id, queries, k, exact=True), strict=True):
                assert pairs(hits) == plain.search(model_id, query, k)
        for owner in MODELS:
            assert index.count(owner) == sum(key[0] == owner for key in plain.items)


def test_hits_bring_the_metadata_back(index: VectorIndex) -> None:
    model_id, dim = next(iter(MODELS.items()))
    facts = {"path": "a/ü.png", "n": 3, "score": 0.25, "flag": True, "none": None}
    index.upsert(model_id, [StoredItem("a", units(np.random.default_rng(0), 1, dim)[0], facts)])
    ((hit,),) = index.search(model_id, units(np.random.default_rng(1), 1, dim), 5)
    assert dict(hit.metadata) == facts


def test_an_approximate_search_finds_nearly_what_the_exact_one_finds(index: VectorIndex) -> None:
    model_id, dim = next(iter(MODELS.items()))
    generator = np.random.default_rng(3)
    vectors = units(generator, 1500, dim)
    index.upsert(model_id, [StoredItem(f"{i:05d}", vector) for i, vector in enumerate(vectors)])
    index.delete(model_id, [f"{i:05d}" for i in range(0, 1500, 3)])
    queries = units(generator, 20, dim)
    exact = [{hit.item_id for hit in hits} for hits in index.search(model_id, queries, 10, exact=True)]
    quick = [{hit.item_id for hit in hits} for hits in index.search(model_id, queries, 10)]
    assert all(len(found) == 10 for found in quick)
    assert np.mean([len(a & b) / 10 for a, b in zip(exact, quick, strict=True)]) >= 0.95


@pytest.mark.parametrize("exact", [True, False])
def test_of_many_equal_vectors_those_with_the_first_ids_are_found(index: VectorIndex, exact: bool) -> None:
    # Nearly as many as rows come along: an index alone would take any of them.
    model_id, dim = next(iter(MODELS.items()))
    row, other = units(np.random.default_rng(0), 2, dim)
    names = [f"{number:02d}" for number in range(12)]
    for name in [*reversed(names), "a"]:
        index.upsert(model_id, [StoredItem(name, other if name == "a" else row, {})])
    for k in (1, 3, 8):
        (hits,) = index.search(model_id, row[None], k, exact=exact)
        assert [hit.item_id for hit in hits] == names[:k]


@pytest.mark.database
def test_each_model_gets_a_partial_index_that_its_searches_fit(postgres_url: str) -> None:
    # One connection, so that what is asked at the end is asked of the one that searched.
    database = Database(postgres_url, connections=1)
    index, generator = PgVectorIndex(database), np.random.default_rng(4)
    for model_id, dim in list(MODELS.items())[:2]:
        index.prepare(model_id, dim)
        index.upsert(model_id, [StoredItem(f"{i}", vector) for i, vector in enumerate(units(generator, 300, dim))])
    with database.transaction() as connection:
        # With so few rows the planner may prefer to sort them all; it can only avoid that with an index that fits.
        connection.execute("SET enable_sort TO off")
        connection.execute("ANALYZE items")
    index.search(model_id, units(generator, 3, dim), 5)
    index.search(model_id, units(generator, 5, dim), 5, exact=True)
    with database.transaction() as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
    with database.transaction() as connection:
        rows = connection.execute(
            "SELECT indexdef, idx_scan FROM pg_indexes JOIN pg_stat_user_indexes ON indexname = indexrelname "
            "WHERE indexdef LIKE '%hnsw%'"
        ).fetchall()
    scans = {model: [count for definition, count in rows if f"WHERE (model_id = '{model}'" in definition] for model in MODELS}
    assert list(scans.values()) == [[0], [3], []]
    database.close()


@pytest.mark.database
def test_vectors_that_are_too_long_for_an_index_are_searched_exactly(postgres_url: str) -> None:
    index, model_id = open_index("pgvector", postgres_url), "m-" + "d" * 32
    index.prepare(model_id, 2001)
    vectors = units(np.random.default_rng(0), 3, 2001)
    index.upsert(model_id, [StoredItem(f"{i}", vector) for i, vector in enumerate(vectors)])
    assert index.search(model_id, vectors[1:2], 1)[0][0].item_id == "1"
    with pytest.raises(GalleryError, match="16000 dimensions, not 16001"):
        index.prepare("m-" + "e" * 32, 16001)
    index.close()


def test_equal_vectors_get_equal_scores_wherever_they_stand() -> None:
    generator = np.random.default_rng(0)
    vectors = units(generator, 257, 33)
    vectors[[3, 90, 256]] = vectors[7]
    scores = cosine_scores(units(generator, 1, 33)[0], vectors)
    assert len({scores[row] for row in (3, 7, 90, 256)}) == 1


@pytest.mark.parametrize("k", [1, 2, 3, 7, 50])
def test_ranking_breaks_ties_by_id_even_at_the_cut(k: int) -> None:
    generator = np.random.default_rng(k)
    scores = generator.integers(0, 4, 30) / 4
    ids = [f"{number:02d}" for number in generator.permutation(30)]
    expected = sorted(range(30), key=lambda position: (-scores[position], ids[position]))[:k]
    assert ranked(scores, ids, k) == expected


def test_an_unknown_index_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="'faiss'; there are: memory, milvus, pgvector"):
        open_index("faiss")
    with pytest.raises(ConfigError, match="needs a PostgreSQL"):
        open_index("pgvector")
