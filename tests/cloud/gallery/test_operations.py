"""Running the service: request ids, logs, readiness and drain; explaining, exporting, switching."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.keys import KeyRing
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import ServiceSettings, create_app
from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import SpaceMismatchError
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.gallery.client import NewItem
from samespace.sdk.gallery.wire import API, Item, SearchRequest, Vectors
from samespace.sdk.gallery.wire_admin import Explained

ITEMS = 30


class Running:
    """A service whose gallery holds the cloud model's vectors of some pictures."""

    def __init__(self, gallery: Gallery, world) -> None:
        self.gallery, self.world = gallery, world
        self.app = create_app(gallery)
        self.http = httpx.Client(base_url="http://gallery", transport=InProcessTransport(self.app))
        self.images = [world.picture() for _ in range(ITEMS)]
        with self.client("cloud") as cloud:
            cloud.add(NewItem(f"{n:03d}", image, {"n": n}) for n, image in enumerate(self.images))

    def client(self, name: str) -> GalleryClient:
        bundle = self.world.bundle(name)
        return GalleryClient.open("http://gallery", bundle, transport=InProcessTransport(self.app))

    def headers(self, name: str) -> dict[str, str]:
        with self.client(name) as client:
            return {"Authorization": f"Bearer {client.handshake().token}"}

    def request(self, name: str, count: int = 2, **more: object) -> dict:
        rows = self.world.embed(name, self.images[:count])
        who = {"space_id": self.world.space.space_id, "model_id": self.world.records[name].model_id}
        return SearchRequest(**who, vectors=Vectors.of(rows), **more).model_dump(mode="json")


@pytest.fixture
def running(founded_gallery, gallery_world) -> Running:
    return Running(founded_gallery, gallery_world)


@pytest.fixture(scope="module")
def in_memory(gallery_world) -> Running:
    return Running(gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex())), gallery_world)


def test_an_explanation_says_how_a_hit_stands_out_and_what_vouches_for_it(in_memory) -> None:
    running = in_memory
    http, headers = running.http, running.headers("phone")
    answer = http.post(f"{API}/explain", json=running.request("phone", k=4, exact=True), headers=headers)
    explained = Explained.model_validate_json(answer.content)
    assert explained.sample == ITEMS
    assert (explained.pair.verdict, explained.pair.query_model_id) == ("pass", running.world.records["phone"].model_id)
    assert explained.pair.gallery_model_id == running.world.space.founder_model_id
    assert explained.pair.signer == running.world.signer.public.key_id
    cloud = running.world.embed("cloud", running.images)
    for query, hits in zip(running.world.embed("phone", running.images[:2]), explained.hits, strict=True):
        scores = np.sort(cloud @ query)[::-1]
        np.testing.assert_allclose([hit.score for hit in hits], scores[:4], atol=1e-5)
        np.testing.assert_allclose([hit.margin for hit in hits[:3]], -np.diff(scores[:4]), atol=1e-5)
        best = hits[0]
        assert best.gallery_share == pytest.approx((ITEMS - 1) / ITEMS)
        assert abs(best.as_same_picture) < 6
        coordinate, part = best.strongest[0]
        assert part == pytest.approx(float(query[coordinate] * cloud[int(best.item_id)][coordinate]), abs=1e-5)
        assert [abs(p) for _, p in best.strongest] == sorted((abs(p) for _, p in best.strongest), reverse=True)
    same = http.post(f"{API}/explain", json=running.request("cloud", k=1), headers=running.headers("cloud"))
    assert same.json()["pair"]["verdict"] == "same model"


def test_an_export_gives_every_item_once_with_its_vector(running) -> None:
    headers, found, after = running.headers("cloud"), [], ""
    while after is not None:
        page = running.http.get(f"{API}/items/export", params={"after": after, "limit": 7}, headers=headers).json()
        found += [Item.model_validate(item) for item in page["items"]]
        after = page["after"]
    assert [item.item_id for item in found] == [f"{n:03d}" for n in range(ITEMS)]
    vectors = np.concatenate([item.vector.array() for item in found])
    np.testing.assert_allclose(vectors, running.world.embed("cloud", running.images), atol=1e-6)
    assert [item.metadata["n"] for item in found] == list(range(ITEMS))


def test_items_are_found_by_items(running) -> None:
    headers = running.headers("phone")
    ids = ["003", "017"]
    found = running.http.post(f"{API}/search/ids", json={"ids": ids, "k": 2, "exact": True}, headers=headers).json()
    assert [hits[0]["item_id"] for hits in found["hits"]] == ids
    cloud = running.world.embed("cloud", running.images)
    for item_id, hits in zip(ids, found["hits"], strict=True):
        assert hits[1]["score"] == pytest.approx(np.sort(cloud @ cloud[int(item_id)])[-2], abs=1e-5)
    missing = running.http.post(f"{API}/search/ids", json={"ids": ["003", "nobody"]}, headers=headers)
    assert (missing.status_code, missing.json()["code"]) == (404, "no_such_item")
    assert running.http.post(f"{API}/search/ids", json={"ids": []}, headers=headers).json()["hits"] == []


def test_the_record_that_counts_can_be_read(in_memory) -> None:
    running, world = in_memory, in_memory.world
    pair = {"query_id": world.records["phone"].model_id, "gallery_model_id": world.space.founder_model_id}
    answer = running.http.get(f"{API}/records", params=pair).json()
    assert answer["record"]["verdict"] == "pass"
    assert answer["signer"] == world.signer.public.key_id
    nobody = running.http.get(f"{API}/records", params={**pair, "query_id": "nobody"}).json()
    assert nobody == {"record": None, "signer": None}


def test_serving_is_switched_in_one_write_and_only_to_a_model_that_devices_can_be_compared_with(
    gallery_stores, gallery_world
) -> None:
    gallery = gallery_world.founded(Gallery(gallery_stores.registry, gallery_stores.index))
    running = Running(gallery, gallery_world)
    space_id, (cloud, phone) = (
        gallery_world.space.space_id,
        (gallery_world.records[name].model_id for name in ("cloud", "phone")),
    )
    path = f"{API}/spaces/{space_id}/aliases"
    assert running.http.get(path).json()["aliases"] == {"serving": cloud}
    refused = running.http.put(f"{path}/serving", json={"model_id": phone})
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_request")
    assert "has no reference here" in refused.json()["detail"]
    unknown = running.http.put(f"{path}/serving", json={"model_id": "m-" + "0" * 32})
    assert (unknown.status_code, unknown.json()["code"]) == (409, "unknown_model")
    gallery.refer(Bundle.open(gallery_world.bundle("phone")))
    assert running.http.put(f"{path}/serving", json={"model_id": phone}).json()["aliases"] == {"serving": phone}
    with running.client("phone") as client:
        assert client.handshake().serving_model_id == phone
        client.add([NewItem("new", running.images[0])])
        assert [hit.item_id for hit in client.search(running.images[0], 5)] == ["new"]
    # And back: what was there is there.
    assert running.http.put(f"{path}/serving", json={"model_id": cloud}).status_code == 200
    with running.client("cloud") as client:
        assert client.search(running.images[4], 1)[0].item_id == "004"
        assert client.get("new") is None
    with pytest.raises(SpaceMismatchError):
        gallery.set_alias("s-0", "serving", cloud)


def test_a_request_id_is_kept_or_made_and_comes_back(in_memory) -> None:
    assert in_memory.http.get("/live", headers={"X-Request-Id": "abc-123.X"}).headers["x-request-id"] == "abc-123.X"
    made = [
        in_memory.http.get("/live", headers={"X-Request-Id": bad}).headers["x-request-id"] for bad in ("a b", "x" * 65, b"\xe9")
    ]
    assert len(set(made)) == 3
    assert all(len(request_id) == 16 for request_id in made)
    assert in_memory.http.get(f"{API}/items").headers["x-request-id"]


def test_a_log_line_says_who_and_what_but_never_a_vector_a_key_a_token_or_an_id(gallery_world, caplog) -> None:
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
    ring = KeyRing(gallery.shelf)
    key, info = ring.create("writer", "acme")
    app = create_app(gallery, ServiceSettings(keys=ring))
    caplog.set_level(logging.INFO, "samespace.gallery.requests")
    http = httpx.Client(base_url="http://gallery", transport=InProcessTransport(app), headers={"X-Api-Key": key})
    claim = Bundle.open(gallery_world.bundle("cloud")).manifest
    who = {"space_id": claim.space_id, "model_id": claim.model_id}
    more = {"artifact_id": claim.artifacts[0].artifact_id, "runtime": "numpy", "device": "pixel"}
    asked = http.post(f"{API}/handshake", json={**who, **more}).json()
    rows = gallery_world.embed("cloud", [base64.b64decode(image) for image in asked["images"]])
    packed = Vectors.of(rows).model_dump(mode="json")
    token = http.post(f"{API}/handshake/answer", json={"challenge": asked["challenge"], "vectors": packed}).json()["token"]
    http.headers["Authorization"] = f"Bearer {token}"
    one = Vectors.of(rows[:1]).model_dump(mode="json")
    http.post(f"{API}/items", json={**who, "ids": ["private-item"], "metadata": [{"name": "private-fact"}], "vectors": one})
    http.get(f"{API}/items", params={"item_id": "private-item"}, headers={"X-Request-Id": "mine"})
    http.get(f"{API}/items", params={"item_id": "absent-item"})
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "samespace.gallery.requests"]
    assert len(lines) == 5
    assert lines[3]["request_id"] == "mine"
    assert [line["status"] for line in lines] == [200, 200, 200, 200, 404]
    assert lines[2]["bytes_in"] > 100
    expected = {"method": "GET", "route": f"{API}/items", "key_id": info.key_id, "tenant": "acme", "device": "pixel"}
    assert expected.items() <= lines[3].items()
    written = caplog.text
    secrets = (key, token, asked["challenge"], one["data"], "private-item", "private-fact", "absent-item")
    assert not [secret for secret in secrets if secret in written]


def test_readiness_is_not_liveness(gallery_world) -> None:
    class Lost(MemoryRegistry):
        lost = False

        def ping(self) -> None:
            if self.lost:
                from samespace.sdk.errors import GalleryUnavailableError

                raise GalleryUnavailableError("the store does not answer")

    registry = Lost()
    app = create_app(gallery_world.founded(Gallery(registry, MemoryIndex())))
    http = httpx.Client(base_url="http://gallery", transport=InProcessTransport(app))
    assert http.get("/ready").json() == {"status": "ready"}
    registry.lost = True
    assert (http.get("/ready").status_code, http.get("/live").status_code) == (503, 200)
    registry.lost = False
    app.state.draining = True
    drained = http.get("/ready")
    assert (drained.status_code, drained.headers["retry-after"]) == (503, "1")
    # What still comes is still answered, on connections that end with it.
    answer = http.get(f"{API}/health")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")


@pytest.fixture
def logged(serve, gallery_world) -> Iterator:
    return serve("--memory", "--bundle", str(gallery_world.bundle("cloud")), "--drain", "1", "--log-requests")


def test_a_service_that_is_told_to_stop_says_so_first_and_answers_what_it_began(logged) -> None:
    seen: list[int] = []
    http = httpx.Client(base_url=logged.url)
    assert http.get("/ready").status_code == 200
    os.kill(logged.process.pid, signal.SIGTERM)

    def watch() -> None:
        try:
            while True:
                seen.append(http.get("/ready").status_code)
                # A new connection each time, as a load balancer's probe.
                assert httpx.get(f"{logged.url}{API}/health").status_code == 200
        except httpx.TransportError:
            return

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, written = logged.process.communicate(timeout=20)
    watcher.join()
    assert 503 in seen
    assert set(seen) <= {200, 503}
    assert logged.process.returncode == 0
    routes = [json.loads(line)["route"] for line in written.splitlines() if line.startswith("{")]
    assert routes.count(f"{API}/health") > 1
