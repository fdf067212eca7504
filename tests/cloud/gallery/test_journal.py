"""What was done to a gallery is remembered with it: changes in their order, and answers to requests that come again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from samespace.cloud.gallery.journal import Entry, Journal, MemoryJournal, PostgresJournal, journal_beside
from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.once import once
from samespace.cloud.gallery.postgres import Database
from samespace.sdk.errors import ConfigError
from samespace.sdk.gallery.wire import Added, Ids

A, B = "m-" + "a" * 32, "m-" + "b" * 32
CLAIM = Claim("s-1", A, "artifact", "numpy")


@pytest.fixture
def journal(gallery_stores) -> Journal:
    return journal_beside(gallery_stores.registry)


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    made = Database(postgres_url)
    yield made
    made.close()


def write(journal: Journal, partition: str, ids: list[str], kind: str = "put") -> None:
    with journal.atomic():
        journal.write(partition, ids, kind)


def test_only_the_latest_change_of_an_item_is_told_and_pages_join(journal: Journal) -> None:
    write(journal, A, ["x", "y", "x"])
    write(journal, B, ["other"])
    write(journal, A, ["z"])
    write(journal, A, ["x"], "delete")
    told = journal.read(A, 0, 100)
    assert [(entry.item_id, entry.kind) for entry in told] == [("y", "put"), ("z", "put"), ("x", "delete")]
    assert sorted(entry.cursor for entry in told) == [entry.cursor for entry in told]
    pages, after = [], 0
    while page := journal.read(A, after, 1):
        pages += page
        after = page[-1].cursor
    assert pages == told
    assert [entry.item_id for entry in journal.read(B, 0, 100)] == ["other"]
    assert journal.read(A, told[-1].cursor, 100) == []


def test_what_raises_leaves_no_change_and_no_answer(gallery_stores, founded_gallery, gallery_world) -> None:
    # Only a store in the same database can take back the vectors, too; the memory store has nothing to outlive.
    claim = gallery_world.admitted(founded_gallery, "cloud")
    rows = gallery_world.embed("cloud", gallery_world.probes[:1])
    journal = founded_gallery.journal

    def do() -> Added:
        founded_gallery.add(claim, claim.space_id, claim.model_id, ["x"], rows, [{}])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        once(journal, claim, "key-12345", Ids(ids=("x",)), Added, do)
    if isinstance(journal, PostgresJournal):
        assert journal.read(founded_gallery.partition(claim), 0, 10) == []
        assert founded_gallery.known(claim, ["x"]) == set()
    done = once(journal, claim, "key-12345", Ids(ids=("x",)), Added, lambda: Added(acknowledged=("second",)))
    assert done.acknowledged == ("second",)


@pytest.mark.database
def test_cursors_become_visible_in_their_order(database: Database) -> None:
    """A reader that has seen a cursor never meets a smaller one later, however long a writer takes."""
    journal = PostgresJournal(database)
    inside, go = threading.Event(), threading.Event()

    def slow() -> None:
        with journal.atomic():
            journal.write(A, ["slow"], "put")
            inside.set()
            go.wait(20)

    def quick() -> None:
        write(journal, A, ["quick"])

    first = threading.Thread(target=slow)
    first.start()
    assert inside.wait(20)
    second = threading.Thread(target=quick)
    second.start()
    # It waits for the first: else its cursor, 2, would be seen before 1.
    second.join(0.3)
    assert second.is_alive()
    assert journal.read(A, 0, 10) == []
    go.set()
    first.join(20)
    second.join(20)
    assert [entry.item_id for entry in journal.read(A, 0, 10)] == ["slow", "quick"]


@pytest.mark.database
def test_a_gallery_that_was_filled_before_there_was_a_journal_tells_its_items(postgres_url: str, database: Database) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO samespace.items (model_id, item_id, embedding, metadata) VALUES (%s, 'old', '[1,0]', '{}')", (A,)
        )
    journal = PostgresJournal(database)
    assert [(entry.item_id, entry.kind) for entry in journal.read(A, 0, 10)] == [("old", "put")]
    again = PostgresJournal(database)
    assert again.feed == journal.feed
    assert len(again.read(A, 0, 10)) == 1


def test_another_store_is_another_feed(gallery_stores) -> None:
    assert journal_beside(gallery_stores.registry).feed != MemoryJournal().feed


def test_a_request_that_comes_again_is_answered_again_and_not_done(journal: Journal) -> None:
    done: list[str] = []

    def do(name: str) -> Added:
        done.append(name)
        return Added(acknowledged=(name,))

    request = Ids(ids=("x",))
    assert once(journal, CLAIM, "key-12345", request, Added, lambda: do("first")).acknowledged == ("first",)
    assert once(journal, CLAIM, "key-12345", request, Added, lambda: do("again")).acknowledged == ("first",)
    assert once(journal, CLAIM, "key-54321", request, Added, lambda: do("other")).acknowledged == ("other",)
    assert once(journal, CLAIM, None, request, Added, lambda: do("no key")).acknowledged == ("no key",)
    assert done == ["first", "other", "no key"]
    with pytest.raises(ConfigError, match="was used for another request"):
        once(journal, CLAIM, "key-12345", Ids(ids=("y",)), Added, lambda: do("stolen"))
    other = Claim("s-1", A, "artifact", "numpy", tenant="acme")
    assert once(journal, other, "key-12345", Ids(ids=("y",)), Added, lambda: do("theirs")).acknowledged == ("theirs",)


def test_of_two_requests_at_once_one_is_done(journal: Journal) -> None:
    done, answers, both = [], [], threading.Barrier(2)

    def do() -> Added:
        done.append(1)
        return Added(acknowledged=(str(len(done)),))

    def ask() -> None:
        both.wait(20)
        answers.append(once(journal, CLAIM, "key-12345", Ids(ids=("x",)), Added, do))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == [1]
    assert [answer.acknowledged for answer in answers] == [("1",), ("1",)]


def test_an_answer_is_forgotten_after_its_time(journal: Journal) -> None:
    for expected in (None, None):
        with journal.atomic():
            assert journal.recall("k", "digest", -1.0) is expected
            journal.remember("k", "answer")
    with journal.atomic():
        assert journal.recall("k", "digest", 100.0) is None
        journal.remember("k", "kept")
    with journal.atomic():
        kept = journal.recall("k", "digest", 100.0)
        assert kept is not None
        assert kept.answer == "kept"


def test_an_entry_is_a_value() -> None:
    assert Entry(1, "x", "put") == Entry(1, "x", "put") != Entry(1, "x", "delete")
