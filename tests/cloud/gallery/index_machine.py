"""One random schedule for several vector indexes, which must answer alike; the memory index is the oracle."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from samespace.cloud.gallery.indexes.base import Filter, Hit, StoredItem, VectorIndex, comes_after
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.sdk.gallery.ranking import cosine_scores, matches

#: Two models of one space, of which one serves at a time, and one of another space.
MODELS = {"m-" + "a" * 32: 8, "m-" + "b" * 32: 8, "m-" + "c" * 32: 5}
SPACES = {"one": list(MODELS)[:2], "other": list(MODELS)[2:]}
#: Ids that sort otherwise by locale than by code point, or that a query language might read.
IDS = [*(f"item-{number}" for number in range(14)), "ä/ö ü", "emoji 🙂", "a'b\"c;--", "%s", "Z", "z", "\\n", "{x}"]
#: What JSON tells apart, and what it does not: 1 is 1.0, but not "1" nor true.
VALUES = [0, 1, 1.0, 2.5, "1", "a", "it's", 'a "word"', True, False, None]


def units(generator: np.random.Generator, n: int, dim: int) -> np.ndarray:
    rows = generator.normal(size=(n, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


#: Few vectors, so that ties are common.
POOL = {dim: units(np.random.default_rng(dim), 16, dim) for dim in set(MODELS.values())}


@dataclass
class Subject:
    """An index, and where its gallery keeps which model serves a space."""

    index: VectorIndex
    set_alias: Callable[[str, str], None]
    alias: Callable[[str], str | None]


@dataclass
class Recall:
    """Of all approximate searches of a run: places of the exact answer, and how many of them were filled as well."""

    wanted: int = 0
    found: int = 0
    searches: int = field(default=0)

    @property
    def value(self) -> float:
        return self.found / self.wanted if self.wanted else 1.0

    def count(self, hits: Sequence[Hit], best: Sequence[Hit]) -> None:
        """One search. As near as the farthest of the exact ones: among ties, one is as good as another."""
        self.searches += 1
        self.wanted += len(best)
        self.found += sum(not comes_after(hit, (best[-1].score, "\U0010ffff")) for hit in hits) if best else 0


def in_memory(index: VectorIndex) -> Subject:
    """An index whose gallery has its registry in memory."""
    aliases: dict[str, str] = {}
    return Subject(index, aliases.__setitem__, aliases.get)


_metadata = st.dictionaries(st.sampled_from(["label", "n", "it's"]), st.sampled_from(VALUES), max_size=3)
_where = st.dictionaries(
    st.sampled_from(["label", "n", "it's"]),
    st.one_of(st.sampled_from(VALUES), st.lists(st.sampled_from(VALUES), max_size=3)),
    max_size=2,
)
_batch = st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 15), _metadata), min_size=1, max_size=9)
_spaces, _models = st.sampled_from(list(SPACES)), st.sampled_from(list(MODELS))
_ids, _ks = st.lists(st.sampled_from(IDS), max_size=6), st.integers(1, 12)


def machine(fresh: Callable[[], Mapping[str, Subject]], recall: Recall) -> type[RuleBasedStateMachine]:
    """A machine that drives the oracle and what ``fresh`` opens (empty, for each schedule) alike."""

    class Indexes(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.oracle = in_memory(MemoryIndex())
            self.others = dict(fresh())
            self.prepared: set[str] = set()

        @property
        def every(self) -> list[Subject]:
            return [self.oracle, *self.others.values()]

        @initialize(seed=st.integers(0, 99))
        def found(self, seed: int) -> None:
            # Some items are in two models of a space.
            self.switch("one", SPACES["one"][1])
            self.put("one", _many(seed + 1)[:6])
            for space, models in SPACES.items():
                self.switch(space, models[0])
                self.put(space, _many(seed))

        @rule(space=_spaces, seed=st.integers(0, 99))
        def fill(self, space: str, seed: int) -> None:
            self.put(space, _many(seed))

        @rule(space=_spaces, number=st.integers(0, 1))
        def switch_alias(self, space: str, number: int) -> None:
            self.switch(space, SPACES[space][number % len(SPACES[space])])

        @rule(space=_spaces, batch=_batch)
        def upsert(self, space: str, batch: list[tuple[str, int, dict[str, Any]]]) -> None:
            self.put(space, batch)

        def put(self, space: str, batch: list[tuple[str, int, dict[str, Any]]]) -> None:
            for subject in self.every:
                model = _serving(subject, space)
                items = [StoredItem(item_id, POOL[MODELS[model]][row], facts) for item_id, row, facts in batch]
                subject.index.upsert(model, items)

        @rule(space=_spaces, ids=_ids)
        def delete(self, space: str, ids: list[str]) -> None:
            self.equal("delete", lambda s: s.index.delete(_serving(s, space), ids))

        @rule(space=_spaces, ids=_ids)
        def get(self, space: str, ids: list[str]) -> None:
            self.equal("known", lambda s: s.index.known(_serving(s, space), ids))
            self.equal("get", lambda s: {i: _told(item) for i, item in s.index.get(_serving(s, space), ids).items()})

        @rule(space=_spaces, seed=st.integers(0, 99), k=_ks, where=_where)
        def search(self, space: str, seed: int, k: int, where: Filter) -> None:
            """Without a filter in the way of a client that sends none, too."""
            options: dict[str, Any] = {"where": where} if where else {}
            self.equal(
                f"search where {where}",
                lambda s: [
                    _pairs(hits)
                    for hits in s.index.search(_serving(s, space), _queries(s, space, seed), k, exact=True, **options)
                ],
            )

        @rule(seed=st.integers(0, 99), k=_ks, where=_where, exact=st.booleans())
        def search_without(self, seed: int, k: int, where: Filter, exact: bool) -> None:
            """What one model of the space has and the other has not: a gallery that is half embedded anew."""
            model, other = sorted(SPACES["one"], key=lambda model: model != _serving(self.oracle, "one"))
            queries = _queries(self.oracle, "one", seed)
            everything = self.oracle.index.search(model, queries, 1000, where=where)
            theirs = self.oracle.index.known(other, IDS)
            for name, subject in {"memory": self.oracle, **self.others}.items():
                found = subject.index.search(model, queries, k, exact=exact, where=where, without=other)
                for hits, all_hits in zip(found, everything, strict=True):
                    expected = [hit for hit in all_hits if hit.item_id not in theirs]
                    assert not theirs & {hit.item_id for hit in hits}, f"{name}: found what the other model has"
                    assert not exact or _pairs(hits) == _pairs(expected[:k]), f"{name}: search without where {where}"
                    if subject is not self.oracle and not exact:
                        recall.count(hits, expected[:k])
            self.equal("count without", lambda s: s.index.count(model, without=other))

        @rule(space=_spaces, seed=st.integers(0, 99), k=st.integers(1, 5), where=_where)
        def turn_pages(self, space: str, seed: int, k: int, where: Filter) -> None:
            """Page after page until there is no more, nothing twice and nothing left out."""
            everything = self.oracle.index.search(
                _serving(self.oracle, space), _queries(self.oracle, space, seed)[:1], 1000, where=where
            )
            for name, subject in self.others.items():
                model, query = _serving(subject, space), _queries(subject, space, seed)[:1]
                turned: list[Hit] = []
                while len(turned) <= len(everything[0]):
                    after = (turned[-1].score, turned[-1].item_id) if turned else None
                    (page,) = subject.index.search(model, query, k, exact=True, where=where, after=after)
                    turned += page
                    if not page:
                        break
                assert _pairs(turned) == _pairs(everything[0]), f"{name}: pages of {k} where {where}"

        @rule(space=_spaces, after=st.sampled_from(["", *IDS]), limit=st.integers(1, 8))
        def scan(self, space: str, after: str, limit: int) -> None:
            self.equal("scan", lambda s: [_told(item) for item in s.index.scan(_serving(s, space), after, limit)])

        @rule(space=_spaces, seed=st.integers(0, 99), k=_ks, where=_where)
        def search_approximately(self, space: str, seed: int, k: int, where: Filter) -> None:
            """Each hit is what it says; how many of the nearest are there is counted over the whole run."""
            model = _serving(self.oracle, space)
            for query in _queries(self.oracle, space, seed):
                (best,) = self.oracle.index.search(model, query[None], k, exact=True, where=where)
                for name, subject in self.others.items():
                    (hits,) = subject.index.search(model, query[None], k, where=where or None)
                    stored = subject.index.get(model, [hit.item_id for hit in hits])
                    assert len(stored) == len(hits) <= k, f"{name}: a hit twice, or of a deleted item"
                    assert all(hits[i + 1].score <= hits[i].score for i in range(len(hits) - 1)), f"{name}: not in order"
                    for hit in hits:
                        assert hit.score == cosine_scores(query, stored[hit.item_id].vector[None])[0], f"{name}: another score"
                        assert matches(hit.metadata, where), f"{name}: {hit} does not match {where}"
                    recall.count(hits, best)

        @invariant()
        def as_many(self) -> None:
            for model in MODELS:
                if model in self.prepared:
                    self.equal("count", lambda s, model=model: s.index.count(model))

        def switch(self, space: str, model: str) -> None:
            """As the gallery does: the index makes room first, then the alias says so."""
            for subject in self.every:
                subject.index.prepare(model, MODELS[model])
                subject.set_alias(space, model)
            self.prepared.add(model)

        def equal(self, what: str, answer: Callable[[Subject], Any]) -> None:
            expected = answer(self.oracle)
            for name, subject in self.others.items():
                got = answer(subject)
                assert got == expected, f"{name}: {what}: {got} instead of {expected}"

    return Indexes


def _many(seed: int) -> list[tuple[str, int, dict[str, Any]]]:
    """A batch that would cost a strategy too many draws; some ids are in it twice."""
    generator = np.random.default_rng(seed)
    chosen = [IDS[number] for number in generator.integers(0, len(IDS), 16)]
    facts = [{"label": VALUES[a], "n": VALUES[b]} for a, b in generator.integers(0, len(VALUES), (16, 2))]
    return list(zip(chosen, generator.integers(0, 16, 16).tolist(), facts, strict=True))


def _serving(subject: Subject, space: str) -> str:
    model = subject.alias(space)
    assert model is not None
    return model


def _queries(subject: Subject, space: str, seed: int) -> np.ndarray:
    """Three queries: any directions, and one of the pool's own."""
    dim = MODELS[_serving(subject, space)]
    return np.concatenate([units(np.random.default_rng(seed), 2, dim), POOL[dim][seed % 16][None]])


def _pairs(hits: Sequence[Hit]) -> list[tuple[str, float, dict[str, Any]]]:
    return [(hit.item_id, hit.score, dict(hit.metadata)) for hit in hits]


def _told(item: StoredItem) -> tuple[str, bytes, dict[str, Any]]:
    return item.item_id, item.vector.tobytes(), dict(item.metadata)
