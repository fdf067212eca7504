"""What abuse costs: large bodies, bombs, slow clients, too many of them; refused, within bounded memory."""

from __future__ import annotations

import io
import json
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import httpx
import psutil
import pytest
from PIL import Image

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.limits import Limits, RateLimiter
from samespace.cloud.gallery.pictures import checked_pictures
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import ServiceSettings, create_app
from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import ConfigError
from samespace.sdk.gallery.client import proof_of
from samespace.sdk.gallery.wire import API, FoundSpace, Vectors

TIGHT = Limits(body=64 << 10, large_body=256 << 10, buffered=128 << 10, body_seconds=0.3, rate=0.0)


def client(world, limits: Limits) -> httpx.Client:
    gallery = world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
    transport = InProcessTransport(create_app(gallery, ServiceSettings(limits=limits)))
    return httpx.Client(base_url="http://gallery", transport=transport)


def problem(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


def test_a_body_is_counted_while_it_comes_whatever_its_header_says(gallery_world) -> None:
    with client(gallery_world, TIGHT) as http:
        assert problem(http.post(f"{API}/items", content=b"x" * (65 << 10))) == (413, "too_large")
        pieces = (b"x" * 1024 for _ in range(1000))
        assert problem(http.post(f"{API}/items", content=pieces)) == (413, "too_large")
        assert problem(http.post(f"{API}/items", content=b"x" * (63 << 10)))[0] in (401, 422)
        # Room is given back.
        for _ in range(5):
            assert problem(http.post(f"{API}/items", content=b"x" * (63 << 10)))[0] in (401, 422)
        # Where pictures travel, more is taken.
        assert problem(http.post(f"{API}/spaces", content=b"x" * (100 << 10))) == (422, "bad_request")


def test_rates_are_of_each_caller(gallery_world) -> None:
    with client(gallery_world, replace(TIGHT, rate=5, burst=1)) as http:
        answers = [http.get(f"{API}/health") for _ in range(12)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:5] == [200] * 5
    assert 429 in statuses
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert problem(refused) == (429, "rate_limited")
    assert refused.headers["retry-after"] == "1"


def test_a_bucket_fills_again_and_strangers_do_not_fill_memory() -> None:
    now = [0.0]
    limiter = RateLimiter(10, 0.5, lambda: now[0])
    assert [limiter.allows("a") for _ in range(6)] == [True] * 5 + [False]
    assert limiter.allows("b")
    now[0] += 0.1
    assert [limiter.allows("a") for _ in range(2)] == [True, False]
    for number in range(20_000):
        limiter.allows(str(number))
    assert len(limiter._buckets) <= 10_000
    assert all(RateLimiter(0, 1).allows("a") for _ in range(1000))


def test_too_many_requests_at_once_are_told_to_come_back_and_probes_are_still_answered(gallery_world) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(MemoryIndex):
        def count(self, model_id: str) -> int:
            entered.set()
            leave.wait(10)
            return 0

    gallery = gallery_world.founded(Gallery(MemoryRegistry(), Slow()))
    transport = InProcessTransport(create_app(gallery, ServiceSettings(limits=replace(TIGHT, requests=1))))
    with httpx.Client(base_url="http://gallery", transport=transport) as http:
        first = threading.Thread(target=http.get, args=(f"{API}/health",))
        first.start()
        entered.wait(10)
        busy = http.get(f"{API}/health")
        assert problem(busy) == (503, "overloaded")
        assert "retry-after" in busy.headers
        assert http.get("/live").status_code == 200
        leave.set()
        first.join()
        assert http.get(f"{API}/health").status_code == 200


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that says it is huge."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(b"\0" * (1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(3000, 3000), (60_000, 60_000)])
def test_a_bomb_among_the_challenges_is_refused_before_it_is_decoded_or_kept(gallery_world, size) -> None:
    gallery = Gallery(MemoryRegistry(), MemoryIndex())
    images = [gallery_world.picture() for _ in range(8)]
    vectors = Vectors.of(gallery_world.embed("cloud", images))
    images[3] = bomb(*size)
    proof = proof_of(Bundle.open(gallery_world.bundle("cloud")))
    message = FoundSpace(proof=proof, images=images, vectors=vectors)
    headers = {"Content-Type": "application/json"}
    with httpx.Client(base_url="http://g", transport=InProcessTransport(create_app(gallery))) as http:
        before = psutil.Process().memory_info().rss
        answer = http.post(f"{API}/spaces", content=message.model_dump_json(), headers=headers)
        assert psutil.Process().memory_info().rss - before < 64 << 20
    assert problem(answer) == (422, "bad_request")
    assert "challenge picture 3" in answer.json()["detail"]
    assert gallery.spaces() == ()


def test_only_formats_that_every_device_decodes_are_challenges() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TIFF")
    for junk in (buffer.getvalue(), b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
        with pytest.raises(ConfigError, match="challenge picture 0"):
            checked_pictures([junk])


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 50_000, b'"' + b"\\u0000" * 1000, b"\xff\xfe", b"1e999999", b"[1,"]
)
def test_json_that_was_made_to_hurt_is_just_wrong(gallery_world, body: bytes) -> None:
    with client(gallery_world, Limits()) as http:
        answer = http.post(f"{API}/handshake", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500


def test_vectors_that_would_be_huge_are_refused_before_they_are_made(gallery_world) -> None:
    with client(gallery_world, Limits()) as http:
        answer = http.post(
            f"{API}/handshake/answer", json={"challenge": "x", "vectors": {"count": 1024, "dim": 65536, "data": ""}}
        )
        assert answer.status_code in (401, 409)


# --- Connections: a service in a process of its own -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_service(gallery_world) -> Iterator[tuple[str, int, int]]:
    """Host, port and process of a service that holds 64 connections, each for 1 second without a request."""
    code = """
import sys
from pathlib import Path
from samespace.cloud.gallery import serve
from samespace.cloud.gallery.limits import Limits
from samespace.cloud.gallery.serve_options import ServeOptions
limits = Limits(connections=64, header_seconds=1.0, body_seconds=1.0, buffered=8 << 20)
serve.serve_gallery(
    serve.Address(port=0), bundle=Path(sys.argv[1]), data=None, database=None, memory=True, runtime=None, allow_unsigned=False,
    options=ServeOptions(limits=limits), ready=lambda url, *_: print(url, flush=True),
)
"""
    command = [sys.executable, "-c", code, str(gallery_world.bundle("cloud"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    url = httpx.URL(process.stdout.readline().strip())
    yield url.host, url.port, process.pid
    process.terminate()
    process.wait(20)


def memory_of(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss


def closed_by_the_service(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_clients_that_say_nothing_are_sent_away_and_take_no_memory(small_service) -> None:
    host, port, pid = small_service
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2000)), hard))
    before = memory_of(pid)
    with ExitStack() as stack:
        opened = []
        for number in range(600):
            connection = stack.enter_context(socket.create_connection((host, port), 5))
            opened.append(connection)
            # Some say nothing, some begin a head and never end it.
            if number % 2:
                with suppress(ConnectionError):
                    connection.sendall(b"POST /v1/items HTTP/1.1\r\nHost: x\r\nX: ")
        # 64 are kept; up to a backlog more are being closed at any moment.
        assert len(psutil.Process(pid).net_connections("tcp")) <= 64 + 2 * 128
        assert memory_of(pid) - before < 48 << 20
        # None is held longer than a second.
        assert all(closed_by_the_service(connection, 5) for connection in opened)
    assert httpx.get(f"http://{host}:{port}/live").status_code == 200


def test_a_body_that_drips_is_cut_off(small_service) -> None:
    host, port, _ = small_service
    with socket.create_connection((host, port), 5) as connection:
        connection.sendall(b"POST /v1/items HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx")
        start = time.monotonic()
        connection.settimeout(10)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - start < 5


def test_many_large_bodies_at_once_are_held_within_the_room_there_is(small_service) -> None:
    host, port, pid = small_service
    before, statuses, peak = memory_of(pid), [], [0]

    def send() -> None:
        with httpx.Client(base_url=f"http://{host}:{port}") as http:
            statuses.append(http.post(f"{API}/items", content=b"x" * (4 << 20)).status_code)

    threads = [threading.Thread(target=send) for _ in range(24)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        peak[0] = max(peak[0], memory_of(pid) - before)
        threads[0].join(0.01)
        for thread in threads:
            thread.join(0.001)
    assert set(statuses) <= {401, 503, 408, 422}
    assert peak[0] < 96 << 20
    assert httpx.get(f"http://{host}:{port}{API}/health").status_code == 200


def test_a_request_that_is_none_is_answered_and_forgotten(small_service) -> None:
    host, port, _ = small_service
    for junk in (b"\x16\x03\x01\x02\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000):
        with socket.create_connection((host, port), 5) as connection:
            try:
                connection.sendall(junk)
            except ConnectionError:
                continue
            connection.settimeout(5)
            with suppress(ConnectionError):
                assert connection.recv(64)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404", b"")
    assert json.loads(httpx.get(f"http://{host}:{port}/ready").text) == {"status": "ready"}
