"""Devices with planted mistakes are refused with the right diagnosis, healthy ones pass; int8, too."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.handshake import HandshakePolicy
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.reception import Admitted
from samespace.cloud.gallery.references import Reference, ReferenceShelf, challenge_set
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.serve import _register
from samespace.cloud.gallery.service import create_app
from samespace.cloud.gallery.shelf import MemoryShelf
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import EmbeddingError, GalleryError, HandshakeRefusedError
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.gallery.wire import API, Problem, UnknownTokenError, Vectors

from .fault_world import PLANTS, FaultWorld

CAUSES = [plant for plant in PLANTS if plant.cause != "no_l2"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> FaultWorld:
    return FaultWorld(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def gallery(world: FaultWorld) -> Gallery:
    made = Gallery(MemoryRegistry(), MemoryIndex())
    _register(made, list(world.bundles.values()), None, False)
    return made


def claim(world: FaultWorld, precision: str, model: str = "phone", **more: str) -> Claim:
    manifest = world.bundles[model].manifest
    return Claim(manifest.space_id, manifest.model_id, world.artifact_id(model, precision), "test", **more)


def shake(gallery: Gallery, world: FaultWorld, precision: str, *plants, **device: str) -> Admitted:
    challenge, images = gallery.challenge(claim(world, precision))
    return gallery.answer(challenge, world.device(images, plants, **{"artifact": precision, **device}))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_healthy_devices_pass_again_and_again(gallery, world, precision: str) -> None:
    for _ in range(10):
        assert shake(gallery, world, precision).judgement.accepted


def test_healthy_int8_kernels_of_another_processor_pass(gallery, world) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        challenge, images = gallery.challenge(claim(world, "int8"))
        rows = world.device(images, artifact="int8")
        rows = rows + generator.normal(scale=np.sqrt(6e-4 / rows.shape[1]), size=rows.shape)
        assert gallery.answer(challenge, rows / np.linalg.norm(rows, axis=1, keepdims=True)).judgement.accepted


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("plant", CAUSES, ids=lambda plant: f"{plant.cause}-{plant.name}")
def test_a_planted_mistake_is_refused_and_named(gallery, world, plant, precision: str) -> None:
    with pytest.raises(HandshakeRefusedError, match=f"'{plant.cause}'.*mend: ") as caught:
        shake(gallery, world, precision, world.planted_as(plant))
    assert caught.value.causes == (plant.cause,)


def test_missing_norm_and_overflow_are_named(gallery, world) -> None:
    with pytest.raises(EmbeddingError, match="'no_l2'") as caught:
        shake(gallery, world, "fp32", artifact="raw")
    assert caught.value.causes == ("no_l2",)
    challenge, images = gallery.challenge(claim(world, "fp32"))
    rows = world.device(images)
    rows[3] = np.nan
    with pytest.raises(EmbeddingError, match="'fp16_overflow'"):
        gallery.answer(challenge, rows)


def test_another_model_under_the_same_name_is_another_revision(gallery, world) -> None:
    with pytest.raises(HandshakeRefusedError, match="'other_revision'"):
        shake(gallery, world, "fp32", model="other")


def test_what_nobody_knows_is_refused_as_unknown(gallery, world) -> None:
    challenge, images = gallery.challenge(claim(world, "fp32"))
    rows = np.random.default_rng(1).normal(size=(len(images), world.space.dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with pytest.raises(HandshakeRefusedError, match="'unknown'"):
        gallery.answer(challenge, rows)


def test_the_gallerys_own_model_is_diagnosed_too(gallery, world) -> None:
    bgr = next(plant for plant in PLANTS if plant.cause == "bgr")
    challenge, images = gallery.challenge(claim(world, "fp32", "cloud"))
    with pytest.raises(HandshakeRefusedError, match="'bgr'"):
        gallery.answer(challenge, world.device(images, [world.planted_as(bgr)], model="cloud"))


def test_a_challenge_is_answered_once_but_a_repeated_request_is_no_replay(world) -> None:
    now = [1000.0]
    gallery = Gallery(MemoryRegistry(), MemoryIndex(), clock=lambda: now[0])
    _register(gallery, [world.bundles["cloud"]], None, False)
    challenge, images = gallery.challenge(claim(world, "fp32", "cloud"))
    rows = world.device(images, model="cloud")
    gallery.answer(challenge, rows)
    now[0] += 5
    gallery.answer(challenge, rows)
    with pytest.raises(UnknownTokenError, match="answered already"):
        gallery.answer(challenge, world.device(images, model="cloud") * np.float32(1 + 1e-6))
    now[0] += 60
    with pytest.raises(UnknownTokenError, match="answered already"):
        gallery.answer(challenge, rows)


def test_a_challenge_of_another_tenant_is_refused(gallery, world) -> None:
    challenge, images = gallery.challenge(claim(world, "fp32", tenant="acme"))
    with pytest.raises(UnknownTokenError, match="another key's tenant"):
        gallery.answer(challenge, world.device(images), "other")
    assert gallery.answer(challenge, world.device(images), "acme").claim.tenant == "acme"


@pytest.fixture
def served(world) -> Iterator[httpx.Client]:
    gallery = Gallery(MemoryRegistry(), MemoryIndex(), policy=HandshakePolicy(unverified="warn"))
    _register(gallery, list(world.bundles.values()), None, False)
    transport = InProcessTransport(create_app(gallery))
    with httpx.Client(base_url="http://gallery", transport=transport) as http:
        yield http
    transport.close()


def answered(http: httpx.Client, world: FaultWorld, *plants, device: str = "pixel", model: str = "phone") -> httpx.Response:
    who = claim(world, "fp32", model)
    request = {"space_id": who.space_id, "model_id": who.model_id, "artifact_id": who.artifact_id, "runtime": "test"}
    asked = http.post(f"{API}/handshake", json={**request, **({"device": device} if device else {})}).json()
    images = [base64.b64decode(image) for image in asked["images"]]
    rows = world.device(images, [world.planted_as(plant) for plant in plants], model=model)
    return http.post(
        f"{API}/handshake/answer",
        json={"challenge": asked["challenge"], "vectors": Vectors.of(rows).model_dump(mode="json")},
    )


BGR = next(plant for plant in PLANTS if plant.cause == "bgr")


def test_where_the_policy_says_so_an_unverified_device_may_search_but_is_warned_and_may_not_add(served, world) -> None:
    admission = answered(served, world, BGR, model="cloud").json()
    assert "'bgr'" in admission["warnings"][0]
    headers = {"Authorization": f"Bearer {admission['token']}"}
    rows = Vectors.of(world.device(world.probes[:1], model="cloud")).model_dump(mode="json")
    who = {"space_id": admission["space_id"], "model_id": admission["model_id"], "vectors": rows}
    found = served.post(f"{API}/search", json={**who, "k": 1}, headers=headers)
    assert found.status_code == 200
    assert "did not pass its handshake" in found.headers["x-samespace-warning"]
    added = served.post(f"{API}/items", json={**who, "ids": ["a"], "metadata": [{}]}, headers=headers)
    assert (added.status_code, added.json()["code"]) == (403, "handshake_refused")
    healthy = answered(served, world, model="cloud")
    assert "warnings" not in healthy.json()


def test_only_who_tells_its_device_is_answered_with_fields_that_old_clients_do_not_know(gallery, world) -> None:
    transport = InProcessTransport(create_app(gallery))
    with httpx.Client(base_url="http://gallery", transport=transport) as http:
        new, old = answered(http, world, BGR), answered(http, world, BGR, device="")
        assert Problem.model_validate_json(new.content).diagnosis == ("bgr",)
        assert "diagnosis" not in old.json()
        assert "'bgr'" in old.json()["detail"]
        assert 'samespace_handshake_causes_total{cause="bgr"} 2.0' in http.get("/metrics").text
    transport.close()


@pytest.mark.parametrize("artifact", ["fp32", "int8"])
def test_the_ordinary_client_passes(gallery, world, artifact: str) -> None:
    with (
        Embedder.open(world.bundles["phone"], artifact=f"onnx-{artifact}") as embedder,
        GalleryClient("http://gallery", embedder, transport=InProcessTransport(create_app(gallery))) as client,
    ):
        assert client.handshake().measured["worst_cosine"] > 0.99


def test_a_reference_survives_its_file_and_counts_only_for_its_own_pictures(gallery, world) -> None:
    pictures = gallery._reception.pictures(world.space.founder_model_id)
    kept = gallery._reception.references.get(world.artifact_id("phone", "int8"), challenge_set(pictures))
    shelf = ReferenceShelf(MemoryShelf())
    shelf.put(Reference.from_bytes(kept.to_bytes()))
    again = shelf.get(kept.artifact_id, kept.challenges)
    np.testing.assert_array_equal(again.right, kept.right)
    assert again.mistakes.keys() == kept.mistakes.keys() > {"bgr", "no_antialias", "range_01"}
    assert shelf.get(kept.artifact_id, challenge_set(pictures[1:])) is None
    with pytest.raises(GalleryError, match="make it again"):
        Reference.from_bytes(b"junk")
