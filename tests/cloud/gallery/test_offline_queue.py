"""The offline queue: what it acknowledged reaches the gallery, in order and once, whatever happens in between."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
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
    FormatVersionError,
    GalleryError,
    GalleryUnavailableError,
    SpaceMismatchError,
)
from samespace.sdk.gallery import (
    AsyncGalleryClient,
    AsyncOfflineQueue,
    DiskFileError,
    GalleryClient,
    NewItem,
    OfflineQueue,
    RetryPolicy,
)

ONCE = RetryPolicy(attempts=1)


class Flaky(httpx.BaseTransport):
    """A network that is there or not; ``before`` and ``after`` may break a request on its way there or back."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner, self.there = inner, True
        self.after: Callable[[httpx.Request], None] = lambda request: None
        self.answer: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if not self.there:
            raise httpx.ConnectError("no network")
        other = self.answer(request)
        answer = other if other is not None else self.inner.handle_request(request)
        self.after(request)
        return answer


class Phone:
    """A device with its queue, and the service; the log is what the gallery really did, in order."""

    def __init__(self, world, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.gallery = world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
        self.log: list[str] = []
        write = self.gallery.journal.write

        def noted(partition: str, ids, kind) -> None:
            self.log += [item_id if kind == "put" else f"-{item_id}" for item_id in ids]
            write(partition, ids, kind)

        self.gallery.journal.write = noted  # type: ignore[method-assign]
        self.app = create_app(self.gallery)
        self.network = Flaky(InProcessTransport(self.app))
        self.client = self.connect("cloud")
        self.rows = world.embed("cloud", world.probes)

    def connect(self, name: str) -> GalleryClient:
        return GalleryClient.open("http://gallery", self.world.bundle(name), transport=self.network, retry=ONCE)

    def queue(self, client: GalleryClient | None = None) -> OfflineQueue:
        return OfflineQueue(client or self.client, self.folder)

    def items(self, count: int, start: int = 0) -> list[NewItem]:
        return [NewItem(f"{n:04d}", self.rows[n % len(self.rows)], {"n": n}) for n in range(start, start + count)]


@pytest.fixture
def phone(gallery_world, tmp_path: Path) -> Phone:
    return Phone(gallery_world, tmp_path)


def ids(count: int) -> list[str]:
    return [f"{n:04d}" for n in range(count)]


def test_what_is_queued_without_a_network_arrives_in_order(phone: Phone) -> None:
    phone.network.there = False
    with phone.queue() as queue:
        assert queue.add([NewItem("picture", phone.world.probes[0], {"label": "x"})]) == ("picture",)
        queue.delete("picture")
        queue.add(phone.items(150))
        queue.delete("0003")
        with pytest.raises(GalleryUnavailableError):
            queue.flush()
        assert queue.waiting() == 153
    phone.network.there = True
    with phone.queue() as queue:
        done = queue.flush()
        assert (done.sent, done.aside, done.waiting, done.busy) == (153, 0, 0, False)
        assert queue.flush().sent == 0
    assert phone.log == ["picture", "-picture", *ids(150), "-0003"]
    item = phone.client.get("0005")
    assert item is not None
    assert item.metadata == {"n": 5}
    np.testing.assert_array_equal(item.vector.array()[0], phone.rows[5])


def test_an_answer_that_was_lost_is_not_done_again_even_after_others_changed_the_item(phone: Phone) -> None:
    queue = phone.queue()
    queue.add(phone.items(1))

    def lose(request: httpx.Request) -> None:
        if request.url.path.endswith("/items"):
            raise httpx.ReadError("the tunnel")

    phone.client.handshake()
    phone.network.after = lose
    with pytest.raises(GalleryUnavailableError):
        queue.flush()
    phone.network.after = lambda request: None
    # Done, but this device does not know. Meanwhile another device deletes it.
    phone.client.delete("0000")
    assert queue.flush().sent == 1
    assert phone.log == ["0000", "-0000"]
    assert phone.client.get("0000") is None


def test_a_deletion_of_what_is_not_there_is_done(phone: Phone) -> None:
    queue = phone.queue()
    queue.delete("never-was")
    assert queue.flush().sent == 1
    assert (phone.log, queue.waiting(), queue.aside()) == ([], 0, [])


def test_a_poisoned_item_is_set_aside_with_its_reason_and_the_rest_goes_on(phone: Phone) -> None:
    queue = phone.queue()
    queue.add(phone.items(20))
    path = queue.path
    # What the device let pass and the service does not: spoiled on the disk.
    with sqlite3.connect(path) as file:
        file.execute("UPDATE jobs SET vector = ? WHERE item_id = '0007'", (np.full(24, np.nan, "<f4").tobytes(),))
        file.execute("UPDATE jobs SET metadata = ? WHERE item_id = '0013'", ('{"deep": {"er": 1}}',))
    file.close()
    done = queue.flush()
    assert (done.sent, done.aside, done.waiting) == (18, 2, 0)
    assert phone.log == [name for name in ids(20) if name not in ("0007", "0013")]
    first, second = queue.aside()
    assert (first.item_id, second.item_id) == ("0007", "0013")
    assert "NaN" in (first.reason or "")
    assert "cannot be added" in (second.reason or "")
    # The app mends one and gives up the other.
    with sqlite3.connect(path) as file:
        file.execute("UPDATE jobs SET vector = ? WHERE item_id = '0007'", (phone.rows[7].tobytes(),))
    file.close()
    queue.drop_aside([second])
    assert queue.retry_aside() == 1
    assert queue.flush().sent == 1
    assert phone.log[-1] == "0007"
    assert queue.aside() == []


def test_an_item_at_which_the_service_fails_each_time_does_not_hold_up_the_others_for_ever(phone: Phone) -> None:
    queue = phone.queue()
    queue.add(phone.items(6))
    broken = httpx.Response(500, json={"title": "t", "status": 500, "detail": "a bug", "code": "gallery"})
    phone.network.answer = lambda request: broken if b'"0002"' in request.content else None
    for _ in range(4):
        with pytest.raises(GalleryError, match="a bug"):
            queue.flush()
        assert phone.log == ["0000", "0001"]
    queue.flush()
    assert queue.waiting() == 0
    assert phone.log == ["0000", "0001", "0003", "0004", "0005"]
    assert [(job.item_id, job.reason) for job in queue.aside()] == [("0002", "a bug")]


def test_a_login_page_is_nobodys_fault(phone: Phone) -> None:
    queue = phone.queue()
    queue.add(phone.items(2))
    phone.network.answer = lambda request: httpx.Response(200, text="<html>welcome to the hotel</html>")
    for _ in range(8):
        with pytest.raises(GalleryError, match="not as a gallery"):
            queue.flush()
    phone.network.answer = lambda request: None
    assert queue.flush().sent == 2
    assert queue.aside() == []


def test_what_no_gallery_takes_is_refused_when_it_is_queued(phone: Phone) -> None:
    queue = phone.queue()
    with pytest.raises(ConfigError, match="item cannot be added"):
        queue.add([NewItem("a\nb", phone.rows[0])])
    with pytest.raises(ConfigError, match="cannot be an item's id"):
        queue.delete("")
    with pytest.raises(EmbeddingError, match=r"'long'.*norm 2"):
        queue.add([NewItem("fine", phone.rows[0]), NewItem("long", 2 * phone.rows[0])])
    with pytest.raises(EmbeddingError, match="'nan'"):
        queue.add([NewItem("nan", np.full(24, np.nan, np.float32))])
    with pytest.raises(SpaceMismatchError, match="3 dimensions"):
        queue.add([NewItem("short", np.ones(3, np.float32))])
    assert queue.waiting() == 0


def test_a_model_that_may_not_fill_the_gallery_keeps_what_it_queued(phone: Phone) -> None:
    edge = phone.connect("phone")
    queue = phone.queue(edge)
    rows = phone.world.embed("phone", phone.world.probes[:1])
    # Nobody knows yet: the first flush finds out.
    queue.add([NewItem("x", rows[0])])
    with pytest.raises(SpaceMismatchError, match="may search it, not fill it"):
        queue.flush()
    assert (queue.waiting(), queue.aside()) == (1, [])
    with pytest.raises(SpaceMismatchError, match="nothing was queued"):
        queue.add([NewItem("y", rows[0])])
    # The gallery goes over to that model, and it goes on.
    phone.gallery.refer(Bundle.open(phone.world.bundle("phone")))
    phone.gallery.set_alias(phone.world.space.space_id, "serving", edge.embedder.model_id)
    assert queue.flush().sent == 1


def test_a_file_of_another_gallery_space_model_or_kind_is_refused(phone: Phone, gallery_world, tmp_path: Path) -> None:
    path = tmp_path / "one.queue"
    OfflineQueue(phone.client, path).close()
    with pytest.raises(SpaceMismatchError, match=r"of the model .* not of"):
        OfflineQueue(phone.connect("phone"), path)
    elsewhere = GalleryClient("http://elsewhere", phone.client.embedder, transport=phone.network)
    with pytest.raises(SpaceMismatchError, match="of the gallery http://gallery, not of http://elsewhere"):
        OfflineQueue(elsewhere, path)
    # In a folder each has its own, so nobody meets another's.
    names = {phone.queue().path, phone.queue(phone.connect("phone")).path, phone.queue(elsewhere).path}
    assert len(names) == 3
    damaged = tmp_path / "damaged.queue"
    damaged.write_bytes(b"no database at all, but long enough to look like one " * 40)
    before = damaged.read_bytes()
    with pytest.raises(DiskFileError, match=r"damaged.queue.*move it away"):
        OfflineQueue(phone.client, damaged)
    assert damaged.read_bytes() == before
    with sqlite3.connect(path) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    with pytest.raises(FormatVersionError, match="newer samespace"):
        OfflineQueue(phone.client, path)


def test_of_two_that_flush_at_once_one_sends(phone: Phone) -> None:
    one, two = phone.queue(), phone.queue(phone.connect("cloud"))
    one.add(phone.items(3))
    inside, go = threading.Event(), threading.Event()

    def hold(request: httpx.Request) -> None:
        if request.url.path.endswith("/items"):
            inside.set()
            go.wait(20)

    phone.network.after = hold
    flusher = threading.Thread(target=one.flush)
    flusher.start()
    assert inside.wait(20)
    told = two.flush()
    assert (told.busy, told.sent, told.waiting) == (True, 0, 3)
    two.add(phone.items(2, start=3))
    go.set()
    flusher.join(20)
    two.flush()
    assert phone.log == ids(5)


def test_the_async_twin_has_the_same_file(phone: Phone) -> None:
    with phone.queue() as queue:
        queue.add(phone.items(3))

    async def work() -> None:
        transport = httpx.ASGITransport(phone.app)
        async with (
            AsyncGalleryClient("http://gallery", phone.client.embedder, transport=transport) as client,
            AsyncOfflineQueue(client, phone.folder) as queue,
        ):
            assert await queue.waiting() == 3
            await queue.add(phone.items(2, start=3))
            await queue.delete("0001")
            assert (await queue.flush()).sent == 6
            assert await queue.aside() == []

    anyio.run(work)
    assert phone.log == [*ids(5), "-0001"]


QUEUE = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np
from samespace.sdk.errors import GalleryError
from samespace.sdk.gallery import GalleryClient, NewItem, OfflineQueue
url, bundle, path, start, mode = sys.argv[1:]
row = np.zeros(24, np.float32)
row[0] = 1
with GalleryClient.open(url, bundle) as client, OfflineQueue(client, path) as queue:
    if mode == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    print("ready", flush=True)
    for number in range(int(start), int(start) + 100_000):
        try:
            queue.add([NewItem(f"{number:06d}", row, {"text": "x" * 1000 if mode == "full" else ""})])
        except GalleryError as error:
            print("error", error, flush=True)
            break
        print(number, flush=True)
        if mode == "send" and number % 3 == 0:
            queue.flush()
"""


def child(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", QUEUE, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate(timeout=20)
    return process


def test_killed_at_any_moment_nothing_acknowledged_is_lost_or_done_twice(serve, gallery_world, tmp_path: Path) -> None:
    served = serve("--memory", "--bundle", str(gallery_world.bundle("cloud")))
    path, chance, acknowledged = tmp_path / "killed.queue", random.Random(4), []
    for _ in range(2):
        start = acknowledged[-1] + 1000 if acknowledged else 0
        process = child(served.url, gallery_world.bundle("cloud"), path, start, "send")
        for _ in range(chance.randint(1, 40)):
            acknowledged.append(int(process.stdout.readline()))
        process.kill()
        rest, _ = process.communicate(timeout=20)
        acknowledged += [int(line) for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    with GalleryClient.open(served.url, gallery_world.bundle("cloud")) as client, OfflineQueue(client, path) as queue:
        queue.flush()
        assert queue.waiting() == 0
        told: list[str] = []
        after = 0
        while page := client.changes(after, limit=1000).changes:
            told += [change.item_id for change in page]
            after = page[-1].cursor
    # Everything that was acknowledged, and at most the one of each run whose acknowledgement was not read.
    assert set(told) >= {f"{number:06d}" for number in acknowledged}
    assert len(told) <= len(acknowledged) + 2
    assert told == sorted(told)
    # The service counts each item that it really wrote.
    metrics = httpx.get(f"{served.url}/metrics").text.splitlines()
    (written,) = [float(line.split()[1]) for line in metrics if line.startswith("samespace_items_added_total ")]
    assert written == len(told)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_full_disk_refuses_and_keeps_what_it_acknowledged(phone: Phone, gallery_world, tmp_path: Path) -> None:
    path = tmp_path / "full.queue"
    process = child("http://gallery", gallery_world.bundle("cloud"), path, 0, "full")
    out, _ = process.communicate(timeout=60)
    *numbers, last = out.splitlines()
    assert last.startswith("error ")
    assert "Free some space" in last
    assert len(numbers) > 20
    with OfflineQueue(phone.client, path) as queue:
        assert queue.waiting() == len(numbers)
        assert queue.flush().sent == len(numbers)
    assert phone.log == [f"{int(number):06d}" for number in numbers]


def test_no_picture_is_needed_any_more_and_none_is_embedded_twice(phone: Phone, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(phone.world.probes[0])
    with phone.queue() as queue:
        queue.add([NewItem("x", picture)])
    picture.unlink()
    embedder = Embedder.open(phone.world.bundle("cloud"))
    client = GalleryClient("http://gallery", embedder, transport=phone.network)
    with phone.queue(client) as queue:
        assert queue.flush().sent == 1
    assert client.session.embedded == 0
