"""What the gallery refuses, before any store sees it; with every kind of store."""

import numpy as np
import pytest

from samespace.cloud.gallery.evidence import measured_record
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.membership import Claim
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import ConfigError, EmbeddingError, HandshakeRefusedError, SpaceMismatchError
from samespace.sdk.gallery.wire import UnknownModelError, UnknownTokenError
from samespace.sdk.identity import SpaceRecord


@pytest.fixture
def memory_gallery(gallery_world) -> Gallery:
    return gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex()))


def fill(gallery: Gallery, world, count: int = 30) -> tuple[Claim, list[bytes]]:
    claim = world.admitted(gallery, "cloud")
    images = [world.picture() for _ in range(count)]
    ids = [f"{number:03d}" for number in range(count)]
    metadata = [{"number": number} for number in range(count)]
    assert gallery.add(claim, claim.space_id, claim.model_id, ids, world.embed("cloud", images), metadata) == tuple(ids)
    return claim, images


def test_the_phone_finds_what_the_cloud_model_put_in(founded_gallery, gallery_world) -> None:
    claim, images = fill(founded_gallery, gallery_world)
    phone = gallery_world.admitted(founded_gallery, "phone")
    queries = gallery_world.embed("phone", images)
    serving, found = founded_gallery.search(phone, phone.space_id, phone.model_id, queries, 3)
    assert serving == claim.model_id
    assert np.mean([hits[0].item_id == f"{i:03d}" for i, hits in enumerate(found)]) > 0.9
    gallery_vectors = gallery_world.embed("cloud", images)
    for query, hits in zip(queries, found, strict=True):
        expected = np.sort(gallery_vectors @ query)[::-1][:3]
        np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-6)
        assert all(hit.metadata == {"number": int(hit.item_id)} for hit in hits)
    assert founded_gallery.spaces()[0].items == len(images)


def spoiled(rows: np.ndarray, fault: str) -> np.ndarray:
    rows = rows.copy()
    match fault:
        case "nan":
            rows[1, 3] = np.nan
        case "inf":
            rows[1, 3] = -np.inf
        case "zero":
            rows[1] = 0
        case "long":
            rows[1] *= 1.01
        case "dim":
            rows = rows[:, :-1]
        case "flat":
            rows = rows[0]
    return rows


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("nan", EmbeddingError, "NaN or infinite.*samespace check"),
        ("inf", EmbeddingError, "NaN or infinite"),
        ("zero", EmbeddingError, "all zeros.*no direction"),
        ("long", EmbeddingError, "norm 1.01 instead of 1.*divide by the norm"),
        ("dim", SpaceMismatchError, "has 23 dimensions, the space s-.* has 24.*embed with a bundle of this space"),
        ("flat", SpaceMismatchError, r"has shape \(24,\)"),
    ],
)
def test_a_spoiled_vector_reaches_no_store_and_takes_its_batch_with_it(
    founded_gallery, gallery_world, fault: str, error: type[Exception], message: str
) -> None:
    claim = gallery_world.admitted(founded_gallery, "cloud")
    rows = spoiled(gallery_world.embed("cloud", gallery_world.probes[:3]), fault)
    with pytest.raises(error, match=message):
        founded_gallery.add(claim, claim.space_id, claim.model_id, ["a", "b", "c"], rows, [{}] * 3)
    with pytest.raises(error, match=message):
        founded_gallery.search(claim, claim.space_id, claim.model_id, rows, 1)
    assert founded_gallery.spaces()[0].items == 0
    challenge, images = founded_gallery.challenge(claim)
    with pytest.raises(error, match=message):
        founded_gallery.answer(challenge, spoiled(gallery_world.embed("cloud", images), fault))


def test_the_message_names_the_item(memory_gallery, gallery_world) -> None:
    claim = gallery_world.admitted(memory_gallery, "cloud")
    rows = spoiled(gallery_world.embed("cloud", gallery_world.probes[:3]), "nan")
    with pytest.raises(EmbeddingError, match="item 'b' holds NaN"):
        memory_gallery.add(claim, claim.space_id, claim.model_id, ["a", "b", "c"], rows, [{}] * 3)


def test_vectors_are_kept_at_unit_norm(memory_gallery, gallery_world) -> None:
    claim = gallery_world.admitted(memory_gallery, "cloud")
    row = gallery_world.embed("cloud", gallery_world.probes[:1]) * np.float32(1.0015)
    memory_gallery.add(claim, claim.space_id, claim.model_id, ["a"], row, [{}])
    _, item = memory_gallery.get(claim, "a")
    assert abs(np.linalg.norm(item.vector.astype(np.float64)) - 1) < 1e-7


def test_ids_and_vectors_must_pair_up(memory_gallery, gallery_world) -> None:
    claim = gallery_world.admitted(memory_gallery, "cloud")
    rows = gallery_world.embed("cloud", gallery_world.probes[:2])
    with pytest.raises(ConfigError, match="3 ids, 2 vectors, 2 metadata"):
        memory_gallery.add(claim, claim.space_id, claim.model_id, ["a", "b", "c"], rows, [{}] * 2)
    assert memory_gallery.add(claim, claim.space_id, claim.model_id, [], rows[:0], []) == ()


def test_vectors_of_another_space_or_model_than_shook_hands_are_refused(memory_gallery, gallery_world) -> None:
    cloud, phone = gallery_world.admitted(memory_gallery, "cloud"), gallery_world.admitted(memory_gallery, "phone")
    rows = gallery_world.embed("cloud", gallery_world.probes[:1])
    other = "s-0123456789abcdef-0123456789abcdef"
    for call in (
        lambda space_id, model_id: memory_gallery.search(cloud, space_id, model_id, rows, 1),
        lambda space_id, model_id: memory_gallery.add(cloud, space_id, model_id, ["a"], rows, [{}]),
    ):
        with pytest.raises(SpaceMismatchError, match=f"of the space {other}, the handshake was for {cloud.space_id}"):
            call(other, cloud.model_id)
        with pytest.raises(SpaceMismatchError, match=f"of the model {phone.model_id}, the handshake was for"):
            call(cloud.space_id, phone.model_id)


def test_a_compatible_model_may_search_but_neither_fill_nor_delete(memory_gallery, gallery_world) -> None:
    fill(memory_gallery, gallery_world)
    phone = gallery_world.admitted(memory_gallery, "phone")
    rows = gallery_world.embed("phone", gallery_world.probes[:1])
    with pytest.raises(SpaceMismatchError, match="may search it, not fill it"):
        memory_gallery.add(phone, phone.space_id, phone.model_id, ["a"], rows, [{}])
    with pytest.raises(SpaceMismatchError, match="not delete"):
        memory_gallery.delete(phone, ["000"])


def test_a_space_that_is_not_here_is_refused_with_those_that_are(memory_gallery, gallery_world) -> None:
    space = SpaceRecord(name="elsewhere", founder_model_id=gallery_world.records["cloud"].model_id, dim=gallery_world.dim)
    manifest = Bundle.open(gallery_world.bundle("phone", space=space)).manifest
    claim = Claim(manifest.space_id, manifest.model_id, manifest.artifacts[0].artifact_id, "numpy")
    with pytest.raises(SpaceMismatchError, match=f"{space.space_id} is not in this gallery.*{gallery_world.space.space_id}"):
        memory_gallery.challenge(claim)
    with pytest.raises(SpaceMismatchError, match="is not in this gallery"):
        memory_gallery.members.introduce(gallery_world.evidence("phone", space=space))


def test_one_model_cannot_be_in_two_spaces_of_a_gallery(memory_gallery, gallery_world) -> None:
    space = SpaceRecord(name="elsewhere", founder_model_id=gallery_world.records["cloud"].model_id, dim=gallery_world.dim)
    images = gallery_world.probes[:8]
    with pytest.raises(SpaceMismatchError, match="serve the other space from a database of its own"):
        memory_gallery.found(gallery_world.evidence("cloud", space=space), images, gallery_world.embed("cloud", images))
    assert len(memory_gallery.spaces()) == 1


def test_only_the_founder_founds_and_only_with_enough_challenges(gallery_world) -> None:
    gallery, images = Gallery(MemoryRegistry(), MemoryIndex()), gallery_world.probes[:8]
    with pytest.raises(SpaceMismatchError, match="found it with the cloud model's bundle"):
        gallery.found(gallery_world.evidence("phone"), images, gallery_world.embed("phone", images))
    with pytest.raises(ConfigError, match=r"at least 8 challenge pictures.*got 7"):
        gallery.found(gallery_world.evidence("cloud"), images[:7], gallery_world.embed("cloud", images[:7]))
    with pytest.raises(ConfigError, match="got 8 pictures and 7 embeddings"):
        gallery.found(gallery_world.evidence("cloud"), images, gallery_world.embed("cloud", images[:7]))
    assert gallery.spaces() == ()


def test_founding_again_changes_nothing(founded_gallery, gallery_world) -> None:
    fill(founded_gallery, gallery_world)
    images = gallery_world.probes[:8]
    rubbish = np.roll(gallery_world.embed("cloud", images), 1, axis=0)
    founded_gallery.found(gallery_world.evidence("cloud"), images, rubbish)
    assert founded_gallery.spaces()[0].items == 30
    gallery_world.admitted(founded_gallery, "cloud")


def test_a_model_or_artifact_must_be_introduced_first(memory_gallery, gallery_world) -> None:
    manifest = Bundle.open(gallery_world.bundle("stranger")).manifest
    claim = Claim(manifest.space_id, manifest.model_id, manifest.artifacts[0].artifact_id, "numpy")
    with pytest.raises(UnknownModelError, match="introduce it with its bundle"):
        memory_gallery.challenge(claim)
    known = gallery_world.admitted(memory_gallery, "phone")
    with pytest.raises(UnknownModelError, match=r"artifact 0000.*newest bundle"):
        memory_gallery.challenge(Claim(known.space_id, known.model_id, "0" * 64, "numpy"))


def test_a_model_that_was_trained_alone_is_refused_by_its_own_evidence(memory_gallery, gallery_world) -> None:
    record = memory_gallery.members.introduce(gallery_world.evidence("stranger")).record
    assert record.verdict == "fail"
    assert abs(record.report["separation"]["value"] - 0.5) < 0.2
    with pytest.raises(SpaceMismatchError, match=r"says 'fail' .*chance is 0.50.*co-train"):
        gallery_world.admitted(memory_gallery, "stranger")


def test_a_newer_record_of_model_or_artifact_overrules_the_evidence(memory_gallery, gallery_world) -> None:
    phone = gallery_world.admitted(memory_gallery, "phone")
    passed = measured_record(gallery_world.evidence("phone"))
    later = passed.model_copy(update={"verdict": "fail", "measured_at": "2999-01-01T00:00:00+00:00"})
    rows = gallery_world.embed("phone", gallery_world.probes[:1])
    memory_gallery.search(phone, phone.space_id, phone.model_id, rows, 1)
    memory_gallery.members.put_record(later, None)
    with pytest.raises(SpaceMismatchError, match="says 'fail'"):
        memory_gallery.search(phone, phone.space_id, phone.model_id, rows, 1)
    # Its artifact was measured on its own, and passes.
    memory_gallery.members.put_record(passed.model_copy(update={"query_id": phone.artifact_id}), None)
    memory_gallery.search(phone, phone.space_id, phone.model_id, rows, 1)
    # And a broken export of the gallery's own model can be kept out.
    cloud = gallery_world.admitted(memory_gallery, "cloud")
    memory_gallery.members.put_record(later.model_copy(update={"query_id": cloud.artifact_id}), None)
    with pytest.raises(SpaceMismatchError, match="says 'fail'"):
        memory_gallery.search(cloud, cloud.space_id, cloud.model_id, rows, 1)


def test_a_record_for_a_model_or_space_that_is_not_here_is_refused(memory_gallery, gallery_world) -> None:
    record = measured_record(gallery_world.evidence("phone"))
    with pytest.raises(SpaceMismatchError, match="is no member"):
        memory_gallery.members.put_record(record.model_copy(update={"gallery_model_id": "m-" + "0" * 32}), None)
    with pytest.raises(SpaceMismatchError, match="not in this gallery"):
        memory_gallery.members.put_record(record.model_copy(update={"space_id": "s-0"}), None)


def test_an_answer_must_have_one_embedding_for_each_picture(memory_gallery, gallery_world) -> None:
    claim = gallery_world.admitted(memory_gallery, "phone")
    challenge, images = memory_gallery.challenge(claim)
    with pytest.raises(HandshakeRefusedError, match="has 32 pictures, the answer 31"):
        memory_gallery.answer(challenge, gallery_world.embed("phone", images[1:]))


def test_a_swapped_order_is_no_answer(memory_gallery, gallery_world) -> None:
    claim = gallery_world.admitted(memory_gallery, "phone")
    challenge, images = memory_gallery.challenge(claim)
    with pytest.raises(HandshakeRefusedError, match="beats only"):
        memory_gallery.answer(challenge, gallery_world.embed("phone", images[::-1]))


@pytest.mark.parametrize("name", ["cloud", "phone"])
def test_swapped_channels_are_refused(memory_gallery, gallery_world, name: str) -> None:
    claim = gallery_world.admitted(memory_gallery, name)
    challenge, images = memory_gallery.challenge(claim)
    with pytest.raises(HandshakeRefusedError, match="Run 'samespace check' on the device"):
        memory_gallery.answer(challenge, gallery_world.embed(name, images, bgr=True))


def test_tokens_end_and_cannot_be_made_up(gallery_world) -> None:
    now = [1000.0]
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex(), clock=lambda: now[0]))
    claim = gallery_world.admitted(gallery, "phone")
    challenge, images = gallery.challenge(claim)
    answer = gallery_world.embed("phone", images)
    token = gallery.answer(challenge, answer).token
    assert gallery.admitted(token) == claim
    with pytest.raises(UnknownTokenError, match="for something else"):
        gallery.admitted(challenge)
    payload, mac = token.split(".")
    for forged in ("", ".", "a.b.c", "ä.ö", f"{payload}.{mac[:-4]}AAA=", f"{payload[:-4]}AAAA.{mac}", payload):
        with pytest.raises(UnknownTokenError, match="shake hands again"):
            gallery.admitted(forged)
    now[0] += 301
    with pytest.raises(UnknownTokenError, match="expired"):
        gallery.answer(challenge, answer)
    assert gallery.admitted(token) == claim
    now[0] += 3600
    with pytest.raises(UnknownTokenError, match="expired"):
        gallery.admitted(token)
    with pytest.raises(UnknownTokenError, match="before it was started again"):
        gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex())).admitted(token)


def test_a_founding_that_was_cut_short_is_no_space_and_can_be_done_again(gallery_stores, gallery_world) -> None:
    images = gallery_world.probes[:8]
    embeddings = gallery_world.embed("cloud", images)

    class CrashError(Exception):
        pass

    class Crashing:
        def __init__(self, inner) -> None:
            self.inner = inner

        def __getattr__(self, name: str):
            if name == "set_alias":
                raise CrashError
            return getattr(self.inner, name)

    with pytest.raises(CrashError):
        Gallery(Crashing(gallery_stores.registry), gallery_stores.index).found(
            gallery_world.evidence("cloud"), images, embeddings
        )
    gallery = Gallery(gallery_stores.registry, gallery_stores.index)
    assert gallery.spaces() == ()
    gallery.found(gallery_world.evidence("cloud"), images, embeddings)
    assert len(gallery.spaces()) == 1
