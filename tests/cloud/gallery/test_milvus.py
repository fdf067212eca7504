"""The index in Milvus: a real server, and milvus-lite. Skipped where they are not installed; make test-milvus installs them."""

import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.base import Hit, StoredItem
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.indexes.milvus import MilvusIndex
from samespace.cloud.gallery.indexes.registry import open_index
from samespace.cloud.gallery.stores import open_stores
from samespace.sdk.errors import ConfigError, GalleryError, GalleryUnavailableError, MissingExtraError

from .index_machine import MODELS, Subject, in_memory, units
from .milvus_server import MilvusServer
from .test_index_congruence import RECALL, run

PYTHON = os.environ.get("SAMESPACE_MILVUS_PYTHON", "")
CLIENT = importlib.util.find_spec("pymilvus") is not None

needs_client = pytest.mark.skipif(not CLIENT, reason="pymilvus is not installed: pip install 'samespace[milvus]'")
needs_server = pytest.mark.skipif(
    not (CLIENT and PYTHON), reason="SAMESPACE_MILVUS_PYTHON names no environment with a Milvus server: make test-milvus"
)
EVERY = [
    pytest.param("lite", marks=[pytest.mark.milvus, needs_client]),
    pytest.param("server", marks=[pytest.mark.milvus, needs_server]),
]


@pytest.fixture(scope="module")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    with MilvusServer(PYTHON, tmp_path_factory.mktemp("milvus")) as server:
        yield server


@pytest.fixture(scope="module", params=EVERY)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "lite":
        return str(tmp_path_factory.mktemp("milvus-lite") / "vectors.db")
    return request.getfixturevalue("milvus_server").url


@pytest.fixture
def index(url: str) -> Iterator[MilvusIndex]:
    opened = MilvusIndex(url)
    yield emptied(opened)
    opened.close()


def emptied(index: MilvusIndex) -> MilvusIndex:
    for model_id in MODELS:
        if index._client.has_collection(f"samespace_{model_id.replace('-', '_')}"):
            index.delete(model_id, [item.item_id for item in index.scan(model_id, "", 5000)])
    return index


def test_it_answers_as_the_oracle_does(index: MilvusIndex, url: str) -> None:
    def fresh() -> dict[str, Subject]:
        return {"milvus": in_memory(emptied(index))}

    recall = run(fresh, examples=15 if url.endswith(".db") else 6, steps=20, shrink=False)
    assert recall.searches > 5
    assert recall.value >= RECALL, recall


def test_a_planted_defect_is_seen(index: MilvusIndex) -> None:
    class Deaf(MilvusIndex):
        def search(self, *arguments: object, **options: object) -> list[list[Hit]]:
            return super().search(*arguments, **{**options, "where": None})  # type: ignore[arg-type]

    index.__class__ = Deaf
    with pytest.raises(AssertionError, match="milvus: "):
        run(lambda: {"milvus": in_memory(emptied(index))}, examples=15, steps=20, shrink=False)


def test_an_approximate_search_finds_nearly_all(index: MilvusIndex) -> None:
    model_id, generator, oracle = next(iter(MODELS)), np.random.default_rng(4), MemoryIndex()
    rows = units(generator, 3000, 8)
    items = [StoredItem(f"{n:05d}", row, {"odd": n % 2}) for n, row in enumerate(rows)]
    for subject in (index, oracle):
        subject.prepare(model_id, 8)
        for start in range(0, 3000, 1000):
            subject.upsert(model_id, items[start : start + 1000])
        subject.delete(model_id, [f"{n:05d}" for n in range(0, 3000, 4)])
    assert [item.item_id for item in index.scan(model_id, "", 2500)] == [i.item_id for i in oracle.scan(model_id, "", 2500)]
    queries = units(generator, 20, 8)
    for where in ({}, {"odd": 1}):
        exact, quick = oracle.search(model_id, queries, 10, where=where), index.search(model_id, queries, 10, where=where)
        shared = [len({h.item_id for h in a} & {h.item_id for h in b}) / 10 for a, b in zip(exact, quick, strict=True)]
        assert np.mean(shared) >= RECALL


def test_a_gallery_with_its_index_in_milvus(url: str, gallery_world) -> None:
    with open_stores(memory=True, index="milvus", index_url=url) as stores:
        gallery = Gallery(stores.registry, stores.index)
        gallery_world.founded(gallery)
        claim, phone = gallery_world.admitted(gallery, "cloud"), gallery_world.admitted(gallery, "phone")
        images = [gallery_world.picture() for _ in range(12)]
        ids = [f"{n}" for n in range(12)]
        vectors = gallery_world.embed("cloud", images)
        gallery.add(claim, claim.space_id, claim.model_id, ids, vectors, [{"n": n} for n in range(12)])
        query = gallery_world.embed("phone", images[3:4])
        _, (hits,) = gallery.search(phone, phone.space_id, phone.model_id, query, 3)
        _, (exact,) = gallery.search(phone, phone.space_id, phone.model_id, query, 3, exact=True)
        assert hits == exact
        assert gallery.delete(claim, ids) == 12
        gallery.close()


@pytest.mark.milvus
@needs_server
def test_what_was_acknowledged_survives_kill_9(milvus_server: MilvusServer) -> None:
    model_id, rows = "m-" + "e" * 32, units(np.random.default_rng(6), 400, 8)
    index = MilvusIndex(milvus_server.url)
    index.prepare(model_id, 8)
    for start in range(0, 400, 50):
        index.upsert(model_id, [StoredItem(f"{n:03d}", rows[n]) for n in range(start, start + 50)])
    index.delete(model_id, ["007", "008"])
    milvus_server.kill()
    milvus_server.start()
    # Who was connected goes on; and so does who comes now.
    for client in (index, MilvusIndex(milvus_server.url)):
        client.prepare(model_id, 8)
        found = client.scan(model_id, "", 1000)
        assert [item.item_id for item in found] == [f"{n:03d}" for n in range(400) if n not in (7, 8)]
        assert client.count(model_id) == 398
        assert client.search(model_id, rows[9:10], 1)[0][0].item_id == "009"
        client.upsert(model_id, [StoredItem("009", rows[9], {"again": True})])
        client.close()


@pytest.mark.milvus
@needs_client
def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    index = MilvusIndex(str(tmp_path / "vectors.db"))
    with pytest.raises(GalleryError, match="32768 dimensions, not 40000"):
        index.prepare("m-" + "1" * 32, 40_000)
    with pytest.raises(GalleryError, match="no model id"):
        index.count("m-1; drop")
    index.close()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(GalleryUnavailableError, match="correct --index-url"):
            MilvusIndex(f"http://someone:secret@127.0.0.1:{closed.getsockname()[1]}")


def test_a_url_is_needed() -> None:
    for url in ("", "milvus", "postgresql://host"):
        with pytest.raises(ConfigError, match="needs --index-url"):
            open_index("milvus", url)


@pytest.mark.skipif(CLIENT, reason="pymilvus is installed")
def test_the_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match="milvus"):
        open_index("milvus", "http://127.0.0.1:1")
