"""The local gallery: what it holds and finds is what the service holds and finds, and nothing is embedded for it."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import anyio
import httpx
import numpy as np
import pytest

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import create_app
from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import (
    ConfigError,
    EmbeddingError,
    GalleryUnavailableError,
    HandshakeRefusedError,
    SpaceMismatchError,
)
from samespace.sdk.gallery import (
    AsyncGalleryClient,
    AsyncLocalGallery,
    GalleryClient,
    LocalGallery,
    NewItem,
    RetryPolicy,
)

ONCE = RetryPolicy(attempts=1)


class Network(httpx.BaseTransport):
    """There or not; it may break at the request with a number, counted from 0."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner, self.there, self.breaks_at, self.paths = inner, True, None, []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self.there or len(self.paths) == self.breaks_at:
            raise httpx.ConnectError("no network")
        self.paths.append(request.url.path.removeprefix("/v1/"))
        return self.inner.handle_request(request)


class Place:
    """A service, the cloud's client that fills it, and a phone's client."""

    def __init__(self, gallery: Gallery, world, folder: Path) -> None:
        self.gallery, self.world, self.folder = gallery, world, folder
        self.app = create_app(gallery)
        self.network = Network(InProcessTransport(self.app))
        self.cloud, self.phone = self.client("cloud"), self.client("phone")
        self.rows = world.embed("cloud", world.probes)

    def client(self, name: str) -> GalleryClient:
        return GalleryClient.open("http://gallery", self.world.bundle(name), transport=self.network, retry=ONCE)

    def add(self, *numbers: int, **facts: object) -> None:
        self.cloud.add(NewItem(f"{n:03d}", self.rows[n % 64], {"n": n, **facts}) for n in numbers)

    def local(self, client: GalleryClient | None = None, **options) -> LocalGallery:
        return LocalGallery(client or self.phone, self.folder, **options)

    def assert_same(self, local: LocalGallery, **options) -> None:
        """Search here is the service's exact search."""
        for image in self.world.probes[:6]:
            query = self.phone.embedder.embed(image)
            assert local.search(query, 25, **options) == self.phone.search(query, 25, exact=True, **options)


@pytest.fixture
def place(founded_gallery, gallery_world, tmp_path: Path) -> Place:
    return Place(founded_gallery, gallery_world, tmp_path)


@pytest.fixture
def in_memory(gallery_world, tmp_path: Path) -> Place:
    return Place(gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex())), gallery_world, tmp_path)


def test_it_finds_offline_what_the_service_finds(place: Place) -> None:
    # Items 10 and 74 have one picture: a tie.
    place.add(*range(20), 74)
    local = place.local()
    done = local.sync()
    assert (done.fetched, done.embedded, done.added, done.missing, done.items, done.cleared) == (21, 0, 0, (), 21, False)
    place.assert_same(local)
    place.assert_same(local, where={"n": [1, 2, 3, 74]})
    expected = place.phone.search(place.world.probes[10], 5, exact=True)
    assert {expected[0].item_id, expected[1].item_id} == {"010", "074"}
    place.network.there = False
    local.close()
    with place.local() as again:
        assert again.search(place.world.probes[10], 5) == expected
        with pytest.raises(GalleryUnavailableError):
            again.sync()
        assert len(again) == 21


def test_only_what_changed_is_fetched(place: Place) -> None:
    place.add(*range(10))
    local = place.local()
    local.sync()
    place.cloud.delete("003")
    place.add(4, changed=True)
    place.add(11)
    place.cloud.delete("absent")
    done = local.sync()
    assert (done.fetched, done.items) == (2, 10)
    place.assert_same(local)
    place.network.paths.clear()
    assert local.sync().fetched == 0
    assert place.network.paths == ["changes"]


def test_any_history_ends_in_the_same_replica(in_memory: Place) -> None:
    chance, local = random.Random(3), in_memory.local(most=15)
    # As the service would be asked for it: the newest first.
    newest: dict[str, None] = {}
    for _ in range(40):
        number = chance.randrange(40)
        newest.pop(f"{number:03d}", None)
        if chance.random() < 0.3:
            in_memory.cloud.delete(f"{number:03d}")
        else:
            in_memory.add(number, version=chance.random())
            newest[f"{number:03d}"] = None
        if chance.random() < 0.3:
            local.sync()
            assert sorted(hit.item_id for hit in local.search(in_memory.rows[0], 100)) == sorted(list(newest)[-15:])
    local.sync()
    here = {hit.item_id: hit for hit in local.search(in_memory.rows[0], 100)}
    there = {hit.item_id: hit for hit in in_memory.phone.search(in_memory.rows[0], 100, exact=True)}
    assert here == {name: there[name] for name in list(newest)[-15:]}


def test_only_the_users_own_items(in_memory: Place) -> None:
    in_memory.add(*range(10), owner="anna")
    in_memory.add(*range(10, 20), owner="bert")
    local = in_memory.local(where={"owner": "anna"})
    assert local.sync().items == 10
    # Given away: gone from here.
    in_memory.add(3, owner="bert")
    in_memory.add(12, owner="anna")
    assert local.sync().items == 10
    names = {hit.item_id for hit in local.search(in_memory.rows[0], 100)}
    assert names == {"012", *(f"{n:03d}" for n in range(10) if n != 3)}
    local.close()
    # Asked for something else, it is another replica: nothing of the old one stays.
    done = in_memory.local(where={"owner": "bert"}).sync()
    assert (done.items, done.cleared) == (10, True)


def test_fewer_or_more_items(in_memory: Place) -> None:
    in_memory.add(*range(30))
    assert in_memory.local(most=10).sync().fetched == 10
    done = in_memory.local(most=12).sync()
    assert (done.fetched, done.items) == (2, 12)
    smaller = in_memory.local(most=5)
    assert (smaller.sync().fetched, len(smaller)) == (0, 5)
    # One of the newest goes, and an older one takes its place.
    in_memory.cloud.delete("029")
    assert smaller.sync().fetched == 1
    assert {hit.item_id for hit in smaller.search(in_memory.rows[0], 100)} == {f"{n:03d}" for n in range(24, 29)}


def test_cut_short_at_any_request_it_goes_on(in_memory: Place, tmp_path: Path) -> None:
    in_memory.add(*range(30))
    in_memory.phone.handshake()
    for request in range(3):
        folder = tmp_path / str(request)
        folder.mkdir()
        local = LocalGallery(in_memory.phone, folder)
        in_memory.network.paths.clear()
        in_memory.network.breaks_at = request
        if request < 2:
            with pytest.raises(GalleryUnavailableError):
                local.sync()
        in_memory.network.breaks_at = None
        local.sync()
        in_memory.assert_same(local)


def test_the_gallery_goes_over_to_another_model(in_memory: Place) -> None:
    world = in_memory.world
    in_memory.add(*range(10))
    # The phone's own model will serve; the replica's rows of the cloud model must not be mixed with its.
    local = in_memory.local()
    local.sync()
    in_memory.gallery.refer(Bundle.open(world.bundle("phone")))
    in_memory.gallery.set_alias(world.space.space_id, "serving", in_memory.phone.embedder.model_id)
    rows = world.embed("phone", world.probes)
    in_memory.phone.add(NewItem(f"new-{n}", rows[n]) for n in range(4))
    # Until it is told, it is the old gallery as a whole.
    assert {hit.item_id for hit in local.search(rows[0], 100)} == {f"{n:03d}" for n in range(10)}
    done = local.sync()
    assert (done.cleared, done.items, done.fetched) == (True, 4, 4)
    hits = local.search(rows[2], 100)
    assert hits[0].item_id == "new-2"
    assert hits[0].score == 1.0
    assert hits == in_memory.phone.search(rows[2], 100, exact=True)
    # Who was not measured with it is refused, and keeps what it had.
    cloud = in_memory.local(in_memory.cloud)
    with pytest.raises(SpaceMismatchError, match="no compatibility record"):
        cloud.sync()


def test_a_store_that_was_replaced_is_another_feed(in_memory: Place, gallery_world, tmp_path: Path) -> None:
    in_memory.add(*range(10))
    in_memory.local().sync()
    other = Place(gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex())), gallery_world, tmp_path)
    other.add(50)
    local = other.local()
    done = local.sync()
    assert (done.cleared, done.items) == (True, 1)
    assert [hit.item_id for hit in local.search(other.rows[0], 100)] == ["050"]


def test_nothing_is_embedded_that_the_gallery_holds(in_memory: Place, monkeypatch) -> None:
    world, embedded = in_memory.world, []
    in_memory.add(*range(20))
    pictures = [NewItem(f"{n:03d}", world.probes[n]) for n in range(20)]
    cloud, phone = in_memory.client("cloud"), in_memory.client("phone")
    for client in (cloud, phone):
        client.handshake()
    embed = Embedder._run
    monkeypatch.setattr(Embedder, "_run", lambda self, rows, start: (embedded.append(len(rows)), embed(self, rows, start))[1])
    for client in (cloud, phone):
        with LocalGallery(client, in_memory.folder) as local:
            done = local.sync(pictures)
            assert (done.fetched, done.embedded, done.added, done.missing) == (20, 0, 0, ())
    # The model itself was not run once: the report does not only say so.
    assert embedded == []

    # One that the gallery does not hold is embedded, once, and the report says that, too.
    extra = [*pictures, NewItem("extra", world.probes[30])]
    with LocalGallery(phone, in_memory.folder) as local:
        done = local.sync(extra)
        assert (done.embedded, done.added, done.missing) == (0, 0, ("extra",))
    with LocalGallery(cloud, in_memory.folder) as local:
        done = local.sync(extra)
        assert (done.embedded, done.added, done.missing, done.items) == (1, 1, (), 21)
        assert embedded == [1]
        assert local.sync(extra).embedded == 0
    assert embedded == [1]


def test_the_rules_of_the_space_hold_offline(in_memory: Place, tmp_path: Path) -> None:
    in_memory.add(*range(5))
    path = tmp_path / "one.gallery"
    with LocalGallery(in_memory.phone, path) as local:
        with pytest.raises(ConfigError, match="synchronise once"):
            local.search(in_memory.rows[0])
        local.sync()
        with pytest.raises(ConfigError, match="ask for 1 to 1000"):
            local.search(in_memory.rows[0], 0)
        with pytest.raises(EmbeddingError, match=r"norm 2 instead"):
            local.search(2 * in_memory.rows[0])
        with pytest.raises(EmbeddingError, match=r"norm nan"):
            local.search(np.full(24, np.nan, np.float32))
        with pytest.raises(SpaceMismatchError, match="3 dimensions"):
            local.search(np.ones(3, np.float32))
        with pytest.raises(ConfigError, match="cannot be searched for"):
            local.search(in_memory.rows[0], where={"n": {"nested": 1}})  # type: ignore[dict-item]
    with pytest.raises(SpaceMismatchError, match="of the model"):
        LocalGallery(in_memory.cloud, path)
    with pytest.raises(ConfigError, match="at least one"):
        LocalGallery(in_memory.phone, path, most=0)
    # The same model by another artifact, which has shown nothing yet.
    with sqlite3.connect(path) as file:
        file.execute("UPDATE state SET value = 'other on numpy' WHERE name = 'admitted'")
    file.close()
    with LocalGallery(in_memory.phone, path) as local, pytest.raises(HandshakeRefusedError, match="synchronise once with it"):
        local.search(in_memory.rows[0])


def test_a_device_with_swapped_channels_gets_no_replica(in_memory: Place, tmp_path: Path) -> None:
    in_memory.add(*range(5))
    bundle = in_memory.world.bundle("phone", bgr=True)
    broken = GalleryClient.open("http://gallery", bundle, transport=in_memory.network)
    with LocalGallery(broken, tmp_path / "broken.gallery") as local:
        with pytest.raises(HandshakeRefusedError):
            local.sync()
        assert len(local) == 0


def test_the_async_twin_has_the_same_file(in_memory: Place) -> None:
    in_memory.add(*range(12))
    in_memory.local().sync()
    in_memory.add(12)

    async def work() -> list:
        transport = httpx.ASGITransport(in_memory.app)
        async with (
            AsyncGalleryClient("http://gallery", in_memory.phone.embedder, transport=transport) as client,
            AsyncLocalGallery(client, in_memory.folder) as local,
        ):
            assert (await local.sync()).fetched == 1
            return await local.search(in_memory.world.probes[3], 5, where={"n": [3, 12]})

    assert anyio.run(work) == in_memory.phone.search(in_memory.world.probes[3], 5, where={"n": [3, 12]}, exact=True)


def test_another_process_that_synchronises_is_seen(in_memory: Place) -> None:
    in_memory.add(1)
    one, two = in_memory.local(), in_memory.local()
    one.sync()
    assert len(two) == 1
    in_memory.add(2)
    one.sync()
    assert len(two) == 2
