"""The client and its async twin with the real service: filters, pages, idempotency, the change feed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import anyio
import httpx
import numpy as np
import pytest

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.handshake import HandshakePolicy
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.keys import KeyRing
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import ServiceSettings, create_app
from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import ConfigError, SpaceMismatchError
from samespace.sdk.gallery import AsyncGalleryClient, GalleryClient, GalleryWarning, NewItem, RetryPolicy
from samespace.sdk.gallery.wire_admin import ApiKeyError, ForbiddenError

COUNT = 30
QUICK = RetryPolicy(attempts=2, base_delay=0)


class World:
    """A service with some items, and clients of it that lose answers when told to."""

    def __init__(self, gallery: Gallery, world) -> None:
        self.gallery, self.world = gallery, world
        self.app = create_app(gallery)
        self.transport = InProcessTransport(self.app)
        self.images = [world.picture() for _ in range(COUNT)]
        self.cloud = self.client("cloud")
        self.cloud.add(NewItem(f"{n:03d}", image, {"parity": n % 2, "n": n}) for n, image in enumerate(self.images))

    def client(self, name: str, transport: httpx.BaseTransport | None = None, **options: object) -> GalleryClient:
        transport = transport or self.transport
        return GalleryClient.open("http://gallery", self.world.bundle(name), transport=transport, retry=QUICK, **options)

    def twin(self, name: str) -> AsyncGalleryClient:
        from samespace.sdk.embedder import Embedder

        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return AsyncGalleryClient("http://gallery", Embedder.open(self.world.bundle(name)), transport=transport, retry=QUICK)


@pytest.fixture
def filled(founded_gallery, gallery_world) -> Iterator[World]:
    made = World(founded_gallery, gallery_world)
    yield made
    made.transport.close()


@pytest.fixture
def in_memory(gallery_world) -> World:
    return World(gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex())), gallery_world)


class Forgetful(httpx.BaseTransport):
    """Does what is asked and loses the next ``lost`` answers on the way back."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner, self.lost = inner, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.inner.handle_request(request)
        if self.lost:
            self.lost -= 1
            raise httpx.ReadError("the connection broke")
        return answer


def test_a_filter_finds_only_what_matches(filled: World) -> None:
    phone = filled.client("phone")
    everything = phone.search(filled.images[3], COUNT, exact=True)
    for where, fits in (
        ({"parity": 1}, lambda n: n % 2),
        ({"n": [1, 2, 500]}, lambda n: n in (1, 2)),
        ({"parity": 0, "n": (4, 5)}, lambda n: n == 4),
        ({"n": "4"}, lambda n: False),
        ({"absent": 1}, lambda n: False),
    ):
        expected = [hit for hit in everything if fits(hit.metadata["n"])]
        assert phone.search(filled.images[3], COUNT, exact=True, where=where) == expected
        assert phone.search(filled.images[3], COUNT, where=where) == expected
    with pytest.raises(ConfigError, match="cannot be searched for"):
        phone.search(filled.images[3], where={"n": {"nested": 1}})
    with pytest.raises(ConfigError, match="cannot be searched for"):
        phone.search(filled.images[3], where={f"{n}": n for n in range(100)})


def test_pages_join_to_the_whole_ranking_and_embed_once(filled: World) -> None:
    phone = filled.client("phone")
    whole = phone.search(filled.images[5], COUNT, exact=True)
    phone.session.embedded = 0
    pages = list(phone.search_pages(filled.images[5], 7, exact=True))
    assert [len(page) for page in pages] == [7, 7, 7, 7, 2]
    assert [hit for page in pages for hit in page] == whole
    assert phone.session.embedded == 1
    first = phone.search_page(filled.images[5], 7, exact=True)
    # What was added between two pages neither repeats nor hides what was there.
    filled.cloud.add([NewItem("new", filled.images[5])])
    second = phone.search_page(filled.images[5], 7, first.cursor, exact=True)
    assert second.hits == whole[7:14]
    assert list(phone.search_pages(filled.images[5], 5, where={"absent": 1})) == []
    with pytest.raises(ConfigError, match="is no cursor of a search"):
        phone.search_page(filled.images[5], 7, "nonsense")


def test_an_answer_that_got_lost_does_not_do_it_twice(filled: World) -> None:
    forgetful = Forgetful(filled.transport)
    cloud = filled.client("cloud", forgetful)
    cloud.handshake()
    before = cloud.changes().cursor
    forgetful.lost = 1
    assert cloud.add([NewItem("once", filled.images[0])]) == ("once",)
    page = cloud.changes(before)
    assert [(change.item_id, change.kind) for change in page.changes] == [("once", "put")]
    cursor = page.cursor
    # The service's cursors are a plain count: a second write would have taken one more.
    forgetful.lost = 1
    assert cloud.delete("once") is True
    (gone,) = cloud.changes(cursor).changes
    assert (gone.kind, gone.cursor) == ("delete", cursor + 1)
    assert cloud.delete("once") is False


def test_the_feed_tells_each_tenant_its_own_changes(gallery_world) -> None:
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
    ring = KeyRing(gallery.shelf)
    transport = InProcessTransport(create_app(gallery, ServiceSettings(keys=ring)))

    def client(tenant: str, role: str = "writer", name: str = "cloud") -> GalleryClient:
        key, _ = ring.create(role, tenant)
        return GalleryClient.open("http://g", gallery_world.bundle(name), transport=transport, api_key=key, retry=QUICK)

    acme, zoo = client("acme"), client("zoo")
    acme.add([NewItem("a", gallery_world.probes[0], {"secret": 1})])
    zoo.add([NewItem("z", gallery_world.probes[1])])
    assert [change.item_id for change in acme.changes().changes] == ["a"]
    assert [change.item_id for change in zoo.changes().changes] == ["z"]
    assert zoo.fetch(["a"]) == []
    assert [item.item_id for item in client("acme", "reader", "phone").fetch(["a", "z"])] == ["a"]
    with pytest.raises(ForbiddenError):
        client("acme", "reader").add([NewItem("b", gallery_world.probes[0])])
    with pytest.raises(ApiKeyError):
        GalleryClient("http://g", transport=transport, api_key="", retry=QUICK).health()


def test_an_api_key_comes_from_the_environment(gallery_world, monkeypatch) -> None:
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
    ring = KeyRing(gallery.shelf)
    transport = InProcessTransport(create_app(gallery, ServiceSettings(keys=ring)))
    monkeypatch.setenv("SAMESPACE_GALLERY_KEY", f" {ring.create('reader', '')[0]}\n")
    assert GalleryClient("http://g", transport=transport).health().status == "ok"
    with pytest.raises(ConfigError, match="holds characters that no key has"):
        GalleryClient("http://g", transport=transport, api_key="ssk_\nx")


def test_the_feed_and_its_filter(filled: World) -> None:
    cloud = filled.cloud
    pages, after = [], 0
    while True:
        page = cloud.changes(after, limit=7)
        pages += page.changes
        after = page.cursor
        if not page.more:
            break
    assert [change.item_id for change in pages] == [f"{n:03d}" for n in range(COUNT)]
    odd = cloud.changes(where={"parity": 1}, limit=1000).changes
    assert {change.item_id for change in odd if change.kind == "put"} == {f"{n:03d}" for n in range(1, COUNT, 2)}
    assert {change.kind for change in odd} == {"put", "delete"}
    # An item that stops matching must leave a replica.
    cloud.add([NewItem("001", filled.images[1], {"parity": 0})])
    (change,) = cloud.changes(after, where={"parity": 1}).changes
    assert (change.item_id, change.kind) == ("001", "delete")
    items = {item.item_id: item for item in cloud.fetch(["001", "absent", "002", "001"])}
    assert sorted(items) == ["001", "002"]
    np.testing.assert_allclose(items["002"].vector.array()[0], filled.world.embed("cloud", [filled.images[2]])[0], atol=1e-5)


def test_a_model_that_may_not_search_may_not_replicate_either(in_memory: World, gallery_world) -> None:
    phone = in_memory.client("phone")
    assert phone.changes().changes
    # The gallery goes over to a model that the phone was not measured with; its token is still good.
    in_memory.gallery.refer(Bundle.open(gallery_world.bundle("phone")))
    cloud_token = in_memory.cloud.handshake()
    in_memory.gallery.set_alias(gallery_world.space.space_id, "serving", gallery_world.records["phone"].model_id)
    assert cloud_token.serving_model_id != gallery_world.records["phone"].model_id
    with pytest.raises(SpaceMismatchError, match="no compatibility record says"):
        in_memory.cloud.changes()
    with pytest.raises(SpaceMismatchError, match="no compatibility record says"):
        in_memory.cloud.fetch(["001"])


def test_what_the_service_warns_of_reaches_the_app_once(gallery_world) -> None:
    policy = HandshakePolicy(unverified="warn")
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex(), policy=policy))
    transport = InProcessTransport(create_app(gallery))
    phone = GalleryClient.open("http://g", gallery_world.bundle("phone", bgr=True), transport=transport)
    with pytest.warns(GalleryWarning, match="did not pass its handshake") as told:
        phone.search_batch([gallery_world.probes[0]] * 1025)
    assert len(told) == 1
    assert len(phone.warnings) == 1
    healthy = GalleryClient.open("http://g", gallery_world.bundle("phone"), transport=transport)
    healthy.search(gallery_world.probes[0])
    assert healthy.warnings == ()


def test_the_async_twin_does_the_same(filled: World) -> None:
    phone = filled.client("phone")

    async def ask() -> None:
        async with filled.twin("phone") as twin:
            found: dict[int, object] = {}

            async def one(n: int) -> None:
                found[n] = await twin.search(filled.images[n], 5, where={"parity": 1})

            async with anyio.create_task_group() as group:
                for n in range(8):
                    group.start_soon(one, n)
            for n in range(8):
                assert found[n] == phone.search(filled.images[n], 5, where={"parity": 1})
            assert await twin.known(["001", "x"]) == {"001"}
            pages = [page async for page in twin.search_pages(filled.images[2], 11, exact=True)]
            assert [hit for page in pages for hit in page] == phone.search(filled.images[2], COUNT, exact=True)
            with pytest.raises(SpaceMismatchError, match="may search it, not fill it"):
                await twin.add([NewItem("x", filled.images[0])])
        async with filled.twin("cloud") as twin:
            told: list[int] = []
            more = (NewItem(f"more-{n}", filled.images[n]) for n in range(5))
            assert len(await twin.add(more, batch=2, progress=told.append)) == 5
            assert told == [2, 4, 5]
            assert await twin.delete("more-0") is True
            assert await twin.delete("more-0") is False
            assert (await twin.get("more-0"), (await twin.get("more-1")).item_id) == (None, "more-1")

    anyio.run(ask)


def test_one_hundred_searches_at_once_shake_hands_once(in_memory: World) -> None:
    shaken: list[int] = []
    answer = in_memory.gallery.answer
    in_memory.gallery.answer = lambda *given: (shaken.append(1), answer(*given))[1]  # type: ignore[method-assign]

    async def ask() -> None:
        async with in_memory.twin("phone") as twin, anyio.create_task_group() as group:
            for n in range(COUNT):
                group.start_soon(twin.search, in_memory.images[n])

    anyio.run(ask)
    assert shaken == [1]


def test_the_twins_have_the_same_methods_and_arguments() -> None:
    def told(kind: type) -> dict[str, list[tuple[str, object, object]]]:
        names = [name for name in vars(kind) if not name.startswith("_") or name == "__init__"]
        made = {name: getattr(kind, name) for name in names}
        return {
            name: [(p.name, p.kind, p.default) for p in inspect.signature(value).parameters.values() if p.name != "progress"]
            for name, value in made.items()
            if callable(value)
        }

    sync, twin = told(GalleryClient), told(AsyncGalleryClient)
    sync["aclose"] = sync.pop("close")
    assert sync == twin
    for name in sync.keys() - {"__init__", "open", "search_pages"}:
        assert inspect.iscoroutinefunction(getattr(AsyncGalleryClient, name)), name
