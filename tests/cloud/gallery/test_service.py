"""The service through the ordinary client, in one process, with every kind of store."""

import base64
import json
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import psycopg
import pytest

from samespace.cloud.gallery.evidence import measured_record
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import ServiceSettings, create_app
from samespace.cloud.gallery.signatures import signed_record
from samespace.cloud.gallery.stores import open_stores
from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import (
    ConfigError,
    EmbeddingError,
    GalleryError,
    GalleryUnavailableError,
    HandshakeRefusedError,
    SignatureError,
    SpaceMismatchError,
)
from samespace.sdk.gallery import GalleryClient, RetryPolicy
from samespace.sdk.gallery.client import NewItem
from samespace.sdk.gallery.wire import API, SearchRequest, Vectors
from samespace.sdk.signing import TrustStore

QUICK = RetryPolicy(attempts=2, base_delay=0)
Connect = Callable[..., GalleryClient]


@pytest.fixture
def connect(gallery_stores, gallery_world) -> Iterator[Connect]:
    """``connect("phone", bgr=False)``: a client of one service, which holds nothing at first."""
    gallery = Gallery(gallery_stores.registry, gallery_stores.index)
    transport = InProcessTransport(create_app(gallery))

    def make(name: str, **options: object) -> GalleryClient:
        path = gallery_world.bundle(name, **options)
        return GalleryClient.open("http://gallery", path, transport=transport, retry=QUICK)

    yield make
    transport.close()
    gallery.close()


def filled(connect: Connect, world, count: int = 20) -> list[bytes]:
    images = [world.picture() for _ in range(count)]
    cloud = connect("cloud")
    cloud.found()
    acknowledged = cloud.add(NewItem(f"{i:03d}", image, {"number": i}) for i, image in enumerate(images))
    assert acknowledged == tuple(f"{i:03d}" for i in range(count))
    return images


def test_a_phone_finds_what_the_cloud_added(connect, gallery_world) -> None:
    images = filled(connect, gallery_world)
    phone = connect("phone")
    # Unknown so far: the client introduces it, shakes hands, and only then searches.
    found = phone.search_batch(images, 3)
    assert np.mean([hits[0].item_id == f"{i:03d}" for i, hits in enumerate(found)]) > 0.9
    assert found[4] == phone.search(images[4], 3) == phone.search(phone.embedder.embed(images[4]), 3, exact=True)
    expected = np.sort(gallery_world.embed("cloud", images) @ gallery_world.embed("phone", images[4:5])[0])[::-1][:3]
    np.testing.assert_allclose([hit.score for hit in found[4]], expected, atol=1e-5)
    assert found[4][0].metadata == {"number": int(found[4][0].item_id)}


def test_health_says_what_is_there(connect, gallery_world) -> None:
    assert connect("cloud").health().spaces == ()
    filled(connect, gallery_world)
    (state,) = connect("cloud").health().spaces
    assert (state.space, state.items) == (gallery_world.space, 20)
    assert state.serving_model_id == gallery_world.records["cloud"].model_id


def test_adding_again_replaces_and_items_can_be_got_and_deleted(connect, gallery_world) -> None:
    images = filled(connect, gallery_world)
    cloud = connect("cloud")
    assert cloud.known(["000", "nobody", "019"]) == {"000", "019"}
    cloud.add([NewItem("000", images[1], {"number": 100})])
    item = cloud.get("000")
    np.testing.assert_allclose(item.vector.array()[0], gallery_world.embed("cloud", images[1:2])[0], atol=1e-6)
    assert item.metadata == {"number": 100}
    assert cloud.health().spaces[0].items == 20
    assert cloud.delete("000")
    assert not cloud.delete("000")
    assert cloud.get("000") is None
    assert cloud.health().spaces[0].items == 19


@pytest.mark.parametrize("item_id", ["a/b/../c", "..", "?x=1&y#z", "ü 🙂", "%2F", "+"])
def test_ids_may_be_any_text(connect, gallery_world, item_id: str) -> None:
    cloud = connect("cloud")
    cloud.found()
    cloud.add([NewItem(item_id, gallery_world.probes[0])])
    assert cloud.get(item_id).item_id == item_id
    assert cloud.delete(item_id)


@pytest.mark.parametrize("item_id", ["", "a\nb", "nul\0", "x" * 513])
def test_ids_that_no_store_takes_are_refused(connect, gallery_world, item_id: str) -> None:
    cloud = connect("cloud")
    cloud.found()
    with pytest.raises(ConfigError, match="cannot be added: ids"):
        cloud.add([NewItem(item_id, gallery_world.probes[0])])


@pytest.mark.parametrize("metadata", [{"a": [1]}, {"a": "nul\0"}, {"a": float("nan")}, {"": 1}, {"a": "x" * 5000}])
def test_metadata_that_no_store_takes_is_refused(connect, gallery_world, metadata: dict) -> None:
    cloud = connect("cloud")
    cloud.found()
    with pytest.raises(ConfigError, match="cannot be added: metadata"):
        cloud.add([NewItem("a", gallery_world.probes[0], metadata)])


@pytest.mark.parametrize("name", ["cloud", "phone"])
def test_a_device_with_swapped_channels_is_told_so_before_its_first_answer(connect, gallery_world, name: str) -> None:
    images = filled(connect, gallery_world)
    device = connect(name, bgr=True)
    with pytest.raises(HandshakeRefusedError, match=r"cosine.*samespace check") as caught:
        device.search(images[0], 3)
    if name == "phone":
        assert "'bgr'" in str(caught.value)
    # Nor can it go round the handshake: without a token nothing is answered.
    with pytest.raises(HandshakeRefusedError):
        device.add([NewItem("a", images[0])])


def test_a_model_that_was_trained_alone_is_refused(connect, gallery_world) -> None:
    filled(connect, gallery_world)
    with pytest.raises(SpaceMismatchError, match=r"'fail'.*co-train"):
        connect("stranger").search(gallery_world.probes[0])


def test_a_bundle_of_another_space_is_refused(connect, gallery_world) -> None:
    filled(connect, gallery_world)
    other = gallery_world.space.model_copy(update={"name": "other"})
    with pytest.raises(SpaceMismatchError, match="is not in this gallery"):
        connect("phone", space=other).search(gallery_world.probes[0])


@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        (np.full(24, np.nan, np.float32), EmbeddingError, "query 0 holds NaN"),
        (np.zeros(24, np.float32), EmbeddingError, "query 0 is all zeros"),
        (np.ones(24, np.float32), EmbeddingError, "norm 4.899 instead of 1"),
        (np.ones(23, np.float32), SpaceMismatchError, "a vector has 23 dimensions"),
        (np.ones((1, 24), np.float32), EmbeddingError, r"\(d,\) array of floats"),
        (np.ones(24, np.int64), EmbeddingError, r"\(d,\) array of floats"),
    ],
)
def test_spoiled_query_vectors_are_refused(connect, gallery_world, vector, error: type[Exception], message: str) -> None:
    filled(connect, gallery_world)
    with pytest.raises(error, match=message):
        connect("phone").search(vector)


@pytest.mark.parametrize("k", [0, 1001])
def test_k_has_bounds(connect, gallery_world, k: int) -> None:
    filled(connect, gallery_world)
    with pytest.raises(ConfigError, match="1 to 1000"):
        connect("phone").search(gallery_world.probes[0], k)


def test_a_model_that_was_not_introduced_needs_a_bundle_to_be(connect, gallery_world) -> None:
    filled(connect, gallery_world)
    bare = connect("phone")
    bare.session._bundle = None
    with pytest.raises(SpaceMismatchError, match="introduce it with its bundle"):
        bare.search(gallery_world.probes[0])


# --- What follows does not depend on the store
# -----------------------------------------------------------------------------------


@pytest.fixture
def service(gallery_world) -> Iterator[InProcessTransport]:
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex()))
    transport = InProcessTransport(create_app(gallery))
    yield transport
    transport.close()


@pytest.fixture
def http(service) -> httpx.Client:
    return httpx.Client(base_url="http://gallery", transport=service)


def test_the_service_believes_only_signers_that_it_trusts(gallery_world, tmp_path) -> None:
    def client(settings: ServiceSettings, **options: object) -> GalleryClient:
        transport = InProcessTransport(create_app(Gallery(MemoryRegistry(), MemoryIndex()), settings))
        bundle = Bundle.open(gallery_world.bundle("cloud", **options), allow_unsigned=True)
        return GalleryClient("http://gallery", Embedder.open(bundle), bundle=bundle, transport=transport)

    with pytest.raises(SignatureError, match="not trusted here"):
        client(ServiceSettings(trust=TrustStore(tmp_path))).found()
    with pytest.raises(SignatureError, match="nobody signed"):
        client(ServiceSettings(), signed=False).found()
    assert client(ServiceSettings(allow_unsigned=True), signed=False).found().record is None


def test_a_signed_record_overrules(service, gallery_world) -> None:
    phone = GalleryClient.open("http://gallery", gallery_world.bundle("phone"), transport=service, retry=QUICK)
    phone.search(gallery_world.probes[0])
    record = measured_record(gallery_world.evidence("phone"))
    worse = record.model_copy(update={"verdict": "fail", "measured_at": "2999-01-01T00:00:00+00:00"})
    with pytest.raises(SignatureError, match="is not signed"):
        phone.put_record(signed_record(worse, None))
    phone.search(gallery_world.probes[0])
    assert phone.put_record(signed_record(worse, gallery_world.signer)) == worse
    with pytest.raises(SpaceMismatchError, match="says 'fail'"):
        phone.search(gallery_world.probes[0])


def test_a_token_that_ran_out_is_renewed_once(gallery_world) -> None:
    now = [0.0]
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex(), clock=lambda: now[0]))
    phone = GalleryClient.open("http://g", gallery_world.bundle("phone"), transport=InProcessTransport(create_app(gallery)))
    first = phone.handshake()
    now[0] += first.expires_in + 1
    phone.search(gallery_world.probes[0])
    assert phone.run(phone.session.admission()).token != first.token


def problem(response: httpx.Response) -> dict:
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert content["status"] == response.status_code
    return content


def test_refusals_are_problems_with_stable_codes(http, service, gallery_world) -> None:
    assert problem(http.get(f"{API}/items", params={"item_id": "a"}))["code"] == "token"
    assert problem(http.get(f"{API}/nothing"))["code"] == "no_such_path"
    assert problem(http.put(f"{API}/health"))["code"] == "no_such_path"
    assert problem(http.post(f"{API}/handshake", json={"space_id": "x"}))["code"] == "bad_request"
    assert problem(http.post(f"{API}/handshake", content=b"{"))["code"] == "bad_request"
    unknown = {"space_id": "x", "model_id": "y", "artifact_id": "z", "runtime": "onnx"}
    assert problem(http.post(f"{API}/handshake", json=unknown))["code"] == "space_mismatch"
    unknown["space_id"] = gallery_world.space.space_id
    assert problem(http.post(f"{API}/handshake", json=unknown))["code"] == "unknown_model"
    assert problem(http.post(f"{API}/handshake", json={**unknown, "more": 1}))["code"] == "bad_request"
    token = GalleryClient.open("http://gallery", gallery_world.bundle("cloud"), transport=service).handshake().token
    headers = {"Authorization": f"Bearer {token}"}
    assert problem(http.get(f"{API}/items", params={"item_id": "a"}, headers=headers))["code"] == "no_such_item"
    assert problem(http.get(f"{API}/items", params={"item_id": "a"}, headers={"Authorization": token}))["code"] == "token"


def test_vectors_that_lie_about_their_length_are_refused(http, service, gallery_world) -> None:
    client = GalleryClient.open("http://gallery", gallery_world.bundle("cloud"), transport=service)
    headers = {"Authorization": f"Bearer {client.handshake().token}", "Content-Type": "application/json"}
    space_id, model_id = client.embedder.space_id, client.embedder.model_id
    good = SearchRequest(
        space_id=space_id, model_id=model_id, vectors=Vectors.of(gallery_world.embed("cloud", gallery_world.probes[:2]))
    )
    assert http.post(f"{API}/search", content=good.model_dump_json(), headers=headers).status_code == 200
    for change, code in (
        ({"count": 3}, "space_mismatch"),
        ({"dim": 25}, "space_mismatch"),
        ({"count": -1}, "bad_request"),
        ({"data": "not base64!"}, "bad_request"),
        ({"data": base64.b64encode(b"abc").decode()}, "space_mismatch"),
    ):
        body = json.loads(good.model_dump_json())
        body["vectors"].update(change)
        assert problem(http.post(f"{API}/search", json=body, headers=headers))["code"] == code, change


def test_what_was_not_foreseen_is_a_problem_without_details(gallery_world, caplog) -> None:
    class Broken(MemoryIndex):
        def count(self, model_id: str) -> int:
            raise ZeroDivisionError("secret detail")

    gallery = gallery_world.founded(Gallery(MemoryRegistry(), Broken()))
    client = GalleryClient("http://gallery", transport=InProcessTransport(create_app(gallery)), retry=QUICK)
    with pytest.raises(GalleryError, match="its log says why") as caught:
        client.health()
    assert "secret" not in str(caught.value)
    assert "secret detail" in caplog.text


@pytest.mark.database
def test_a_lost_database_is_reported_and_found_again(postgres_url: str, gallery_world) -> None:
    with open_stores(database=postgres_url) as stores, Gallery(stores.registry, stores.index) as gallery:
        gallery_world.founded(gallery)
        transport = InProcessTransport(create_app(gallery))
        client = GalleryClient.open("http://gallery", gallery_world.bundle("phone"), transport=transport, retry=QUICK)
        client.search(gallery_world.probes[0])
        database = postgres_url.split("/")[3].split("?")[0]
        admin = postgres_url.replace(f"/{database}?", "/postgres?")
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (database,))
            with pytest.raises(GalleryUnavailableError, match=r"no answer.*start that PostgreSQL"):
                client.search(gallery_world.probes[0])
            with pytest.raises(GalleryUnavailableError):
                client.health()
            metrics = httpx.Client(transport=transport).get("http://gallery/metrics")
            assert 'status="503"' in metrics.text
            connection.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
        assert client.search(gallery_world.probes[0]) == []
        transport.close()


def test_metrics_count_what_happened(http, service, gallery_world) -> None:
    cloud = GalleryClient.open("http://gallery", gallery_world.bundle("cloud"), transport=service)
    cloud.add([NewItem(f"{i}", image) for i, image in enumerate(gallery_world.probes[:5])])
    cloud.search_batch(gallery_world.probes[:3])
    with pytest.raises(HandshakeRefusedError):
        GalleryClient.open("http://gallery", gallery_world.bundle("phone", bgr=True), transport=service).handshake()
    for path in ("/scan1", "/scan2"):
        http.get(path)
    text = http.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines["samespace_items_added_total"] == "5.0"
    assert lines["samespace_queries_total"] == "3.0"
    assert lines['samespace_handshakes_total{verdict="accepted"}'] == "1.0"
    assert lines['samespace_handshakes_total{verdict="refused"}'] == "1.0"
    assert lines[f'samespace_items{{space="{gallery_world.space.space_id}"}}'] == "5.0"
    assert lines['samespace_requests_total{method="GET",route="unknown",status="404"}'] == "2.0"
    assert lines['samespace_requests_total{method="POST",route="/v1/search",status="200"}'] == "1.0"


def test_openapi_describes_the_busiest_route_as_fastapi_describes_others(http) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    search, explain = (paths[f"/v1/{name}"]["post"] for name in ("search", "explain"))
    assert search["requestBody"] == explain["requestBody"]
    assert search["security"] == explain["security"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"k": 3}', b'{"k": NaN}'])
def test_the_busiest_route_refuses_as_others_do(http, service, gallery_world, body) -> None:
    token = GalleryClient.open("http://gallery", gallery_world.bundle("cloud"), transport=service).handshake().token
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answers = [http.post(f"/v1/{name}", content=body, headers=headers) for name in ("search", "explain")]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].json()["code"] == answers[1].json()["code"] == "bad_request"


def test_openapi_describes_every_message(http) -> None:
    description = http.get("/openapi.json").json()
    assert {
        f"{API}/{path}"
        for path in ("health", "spaces", "models", "records", "handshake", "handshake/answer", "items", "search")
    } <= (description["paths"].keys())
    assert "Problem" in description["components"]["schemas"]
    assert http.get("/docs").status_code == 200
