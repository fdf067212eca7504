"""The gallery client against a scripted service: what it sends, when it tries again, which errors it raises.

How it gets on with the real service is tested with the service, in tests/cloud/gallery.
"""

import io
import time
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from samespace.sdk import errors
from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import ConfigError, GalleryError, GalleryUnavailableError, SamespaceError, SpaceMismatchError
from samespace.sdk.gallery import GalleryClient, RetryPolicy
from samespace.sdk.gallery.challenges import make_challenges
from samespace.sdk.gallery.client import NewItem, proof_of
from samespace.sdk.gallery.wire import CODES, PROOF_FILES, UnknownModelError, UnknownTokenError, Vectors, code_of, error_of

URL = "http://gallery.test:1"
HEALTH = {"status": "ok", "version": "1", "spaces": []}
Answer = httpx.Response | Exception


class Script(httpx.BaseTransport):
    """Answers with what it was given, in order, and remembers what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def paths(self) -> list[str]:
        return [request.url.path.removeprefix("/v1/") for request in self.requests]


def ok(content: object) -> httpx.Response:
    return httpx.Response(200, json=content)


def problem(code: str, status: int = 409, detail: str = "why, and what to do") -> httpx.Response:
    return httpx.Response(status, json={"title": "t", "status": status, "detail": detail, "code": code})


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


@pytest.fixture
def phone(toy_bundle) -> Bundle:
    return toy_bundle()


@pytest.fixture
def client(phone: Bundle) -> Callable[..., GalleryClient]:
    return lambda script: GalleryClient(URL, Embedder.open(phone), transport=script)


def admission(token: str, phone: Bundle) -> httpx.Response:
    manifest = phone.manifest
    fields = {"space_id": manifest.space_id, "model_id": manifest.model_id, "serving_model_id": "m", "measured": {}}
    return ok({"token": token, "expires_in": 1.0, **fields})


def challenge(toy) -> httpx.Response:
    import base64

    return ok({"challenge": "c", "images": [base64.b64encode(image).decode() for image in toy.images[:3]]})


FOUND = {"model_id": "m", "hits": [[{"item_id": "a", "score": 0.5, "metadata": {"n": 1}}]]}


@pytest.mark.parametrize(
    "passing",
    [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut"), problem("unavailable", 503)],
)
def test_what_may_pass_is_tried_again_after_growing_pauses_with_jitter(pauses, passing: Answer) -> None:
    script = Script(passing, passing, passing, ok(HEALTH))
    assert GalleryClient(URL, transport=script).health().status == "ok"
    assert len(script.requests) == 4
    for attempt, pause in enumerate(pauses):
        assert 0.5 * 0.2 * 2**attempt <= pause <= 1.5 * 0.2 * 2**attempt


def test_pauses_differ_and_are_bounded() -> None:
    policy = RetryPolicy(longest_delay=3.0)
    assert len({policy.delay(1) for _ in range(20)}) > 1
    assert all(policy.delay(attempt) <= 4.5 for attempt in range(1, 60))


def test_nobody_there_names_the_url_and_the_mend(pauses) -> None:
    script = Script(*[httpx.ConnectError("Connection refused")] * 4)
    with pytest.raises(
        GalleryUnavailableError, match=f"no gallery answers at {URL} .Connection refused; 4 attempts.*gallery serve"
    ):
        GalleryClient(URL, transport=script).health()
    assert len(pauses) == 3


def test_a_service_that_stays_unavailable_says_why_itself(pauses) -> None:
    script = Script(*[problem("unavailable", 503, "the database is down; start it")] * 4)
    with pytest.raises(GalleryUnavailableError, match="the database is down; start it"):
        GalleryClient(URL, transport=script).health()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500])
def test_a_refusal_is_not_tried_again(pauses, status: int) -> None:
    script = Script(problem("gallery", status))
    with pytest.raises(GalleryError, match="why, and what to do"):
        GalleryClient(URL, transport=script).health()
    assert (len(script.requests), pauses) == (1, [])


@pytest.mark.parametrize(("kind", "code", "status"), CODES)
def test_every_code_becomes_the_error_it_was(pauses, kind: type[SamespaceError], code: str, status: int) -> None:
    assert code_of(kind("x")) == (code, status)
    assert type(error_of(code, "x")) is kind
    with pytest.raises(kind, match="why"):
        GalleryClient(URL, transport=Script(*[problem(code, status)] * 4)).health()


def test_codes_are_a_promise_to_other_versions() -> None:
    assert {code for _, code, _ in CODES} == {
        "unknown_model",
        "upgrade_refused", "space_mismatch", "bad_embedding", "token", "handshake_refused", "unavailable", "no_such_item",
        "signature", "format_version", "integrity", "bundle", "bad_request", "gallery",
        "api_key", "forbidden", "too_large", "rate_limited", "overloaded",
    }  # fmt: skip
    assert type(error_of("invented later", "x")) is GalleryError


def test_every_public_error_has_a_code_of_its_own_or_of_an_ancestor() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        raised = kind("x", "y") if kind is errors.MissingExtraError else kind("x")
        code, status = code_of(raised)
        assert 400 <= status < 600
        assert isinstance(error_of(code, "x"), SamespaceError)


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>welcome</html>"),
        httpx.Response(404, text="not here"),
        httpx.Response(302, headers={"location": "http://elsewhere"}),
        ok({"status": "ok"}),
        ok({**HEALTH, "added_later": 1}),
    ],
)
def test_something_else_at_that_url_is_said(answer: httpx.Response) -> None:
    with pytest.raises(GalleryError, match=f"{URL} answered HTTP {answer.status_code}, but not as a gallery.*check the URL"):
        GalleryClient(URL, transport=Script(answer)).health()


@pytest.mark.parametrize("url", ["", "gallery:80", "ftp://gallery", "/path"])
def test_a_url_must_be_one(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the URL of a gallery"):
        GalleryClient(url)


def test_without_an_embedder_there_is_no_searching() -> None:
    with pytest.raises(ConfigError, match=r"GalleryClient.open\(url, bundle\)"):
        GalleryClient(URL, transport=Script()).search(np.ones(3, np.float32))


def test_the_first_search_introduces_and_shakes_hands_by_itself(client, toy, phone) -> None:
    introduced = {"space_id": "s", "model_id": "m", "serving_model_id": "g", "record": None}
    script = Script(problem("unknown_model"), ok(introduced), challenge(toy), admission("t1", phone), ok(FOUND), ok(FOUND))
    talking = client(script)
    (hit,) = talking.search(toy.images[0], 1)
    talking.search(toy.images[1], 1)
    assert (hit.item_id, hit.score, hit.metadata) == ("a", 0.5, {"n": 1})
    assert script.paths == ["handshake", "models", "handshake", "handshake/answer", "search", "search"]
    assert script.requests[-1].headers["authorization"] == "Bearer t1"
    answer = Vectors.model_validate(__import__("json").loads(script.requests[3].content)["vectors"])
    np.testing.assert_allclose(answer.array(), toy.embed(toy.images[:3], toy.edge), atol=1e-5)


def test_a_token_is_renewed_once_and_no_more(client, toy, phone) -> None:
    gone = lambda: problem("token", 401)  # noqa: E731
    script = Script(
        challenge(toy), admission("t1", phone), ok(FOUND), gone(), challenge(toy), admission("t2", phone), ok(FOUND)
    )
    talking = client(script)
    talking.search(toy.images[0])
    talking.search(toy.images[0])
    assert script.requests[-1].headers["authorization"] == "Bearer t2"
    with pytest.raises(UnknownTokenError):
        client(Script(challenge(toy), admission("t1", phone), gone())).search(toy.images[0])


def test_a_model_that_stays_unknown_is_an_error_and_no_loop(client) -> None:
    introduced = {"space_id": "s", "model_id": "m", "serving_model_id": "g", "record": None}
    with pytest.raises(UnknownModelError):
        client(Script(problem("unknown_model"), ok(introduced), problem("unknown_model"))).handshake()


def test_many_items_go_in_batches_and_are_embedded_or_taken_as_they_are(client, toy, phone) -> None:
    rows = np.tile(toy.embed(toy.images[:1], toy.edge), (2000, 1))
    items = [NewItem(f"{i}", row) for i, row in enumerate(rows)] + [NewItem("image", toy.images[1], {"n": 1})]
    acknowledge = [ok({"acknowledged": [f"{i}" for i in part]}) for part in (range(1024), range(1024, 2001))]
    script = Script(challenge(toy), admission("t", phone), *acknowledge)
    assert len(client(script).add(items)) == 2001
    sent = [Vectors.model_validate(__import__("json").loads(r.content)["vectors"]).array() for r in script.requests[2:]]
    assert [len(rows) for rows in sent] == [1024, 977]
    np.testing.assert_array_equal(sent[0][5], rows[5])
    np.testing.assert_allclose(sent[1][-1], toy.embed(toy.images[1:2], toy.edge)[0], atol=1e-5)


def test_only_the_proof_of_a_bundle_travels(phone) -> None:
    proof = proof_of(phone)
    assert set(proof.files) == set(PROOF_FILES)
    assert proof.files[PROOF_FILES[0]] == phone.read(PROOF_FILES[0])
    assert type(proof).model_validate_json(proof.model_dump_json()) == proof


@given(st.integers(0, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_vectors_arrive_bit_by_bit(count: int, dim: int, seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**32, (count, dim), dtype=np.uint32)
    rows = bits.view(np.float32)
    again = Vectors.model_validate_json(Vectors.of(rows).model_dump_json()).array()
    np.testing.assert_array_equal(again.view(np.uint32), bits)


def test_vectors_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(SpaceMismatchError, match="2 rows of 3 float32 need 24 bytes, got 23"):
        Vectors(count=2, dim=3, data=b"x" * 23).array()


def test_challenges_are_in_no_bundle_and_their_embeddings_are_of_just_these_files(toy, phone) -> None:
    with Embedder.open(phone) as embedder:
        images, vectors = make_challenges(phone, embedder, 80, seed=1)
        again, _ = make_challenges(phone, embedder, 80, seed=1)
        others, _ = make_challenges(phone, embedder, 80)
    assert len(images) == len(vectors) == 80
    assert images == again != others
    assert not set(images) & set(toy.images)
    np.testing.assert_allclose(vectors, toy.embed(images, toy.edge), atol=1e-5)
    # They are still the probes: nearly all are nearest to the one they were made of, mirrored.
    mirrored = [mirror(image) for image in toy.images]
    scores = vectors @ toy.embed(mirrored, toy.edge).T
    assert np.median(scores.max(axis=1)) > 0.8


def mirror(encoded: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 700)])
def test_challenges_are_made_of_any_picture(mode: str, size: tuple[int, int]) -> None:
    import random

    from samespace.sdk.gallery import challenges

    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    made = Image.open(io.BytesIO(challenges._varied(buffer.getvalue(), random.Random(0), 300)))
    assert made.format == "PNG"
    assert max(made.size) <= 300
    assert min(made.size) >= 1


def test_a_service_that_says_when_is_asked_again_then(pauses) -> None:
    busy = httpx.Response(
        429,
        headers={"retry-after": "2"},
        json={"title": "t", "status": 429, "detail": "slow down, and repeat this", "code": "rate_limited"},
    )
    far = httpx.Response(503, headers={"retry-after": "3600"}, json=busy.json() | {"status": 503, "code": "overloaded"})
    silent = httpx.Response(503, headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, text="a proxy")
    assert GalleryClient(URL, transport=Script(busy, far, silent, ok(HEALTH))).health().status == "ok"
    policy = RetryPolicy()
    assert 2 <= pauses[0] <= 3
    assert policy.longest_delay <= pauses[1] <= 1.5 * policy.longest_delay
    assert pauses[2] <= 1.5 * 0.8


def test_a_repeated_write_has_the_key_of_the_first_and_another_write_another(client, toy, phone, pauses) -> None:
    added = ok({"acknowledged": ["a"]})
    script = Script(challenge(toy), admission("t", phone), problem("unavailable", 503), httpx.ReadTimeout("slow"), added, added)
    talking = client(script)
    row = toy.embed(toy.images[:1], toy.edge)[0]
    talking.add([NewItem("a", row)])
    talking.add([NewItem("a", row)])
    keys = [request.headers["idempotency-key"] for request in script.requests[2:]]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert "idempotency-key" not in script.requests[0].headers


def test_every_request_has_the_api_key_and_the_handshake_names_the_device(toy, phone, monkeypatch) -> None:
    monkeypatch.delenv("SAMESPACE_GALLERY_KEY", raising=False)
    script = Script(challenge(toy), admission("t", phone), ok(FOUND))
    GalleryClient(URL, Embedder.open(phone), transport=script, api_key="ssk_x", device="pixel-8").search(toy.images[0])
    assert [request.headers["x-api-key"] for request in script.requests] == ["ssk_x"] * 3
    assert __import__("json").loads(script.requests[0].content)["device"] == "pixel-8"
    script = Script(ok(HEALTH))
    GalleryClient(URL, transport=script).health()
    assert "x-api-key" not in script.requests[0].headers
