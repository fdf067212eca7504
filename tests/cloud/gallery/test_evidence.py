"""What a gallery believes of a bundle, and what it measures for itself."""

import json
import re

import numpy as np
import pytest

from samespace.cloud.gallery.evidence import MIN_SEPARATION, measured_record, own_separation, verified_evidence
from samespace.cloud.gallery.handshake import HandshakePolicy, judge_by_record, judge_same_model
from samespace.cloud.gallery.signatures import signed_record, verified_record
from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import BundleError, IntegrityError, SignatureError
from samespace.sdk.gallery.client import proof_of
from samespace.sdk.gallery.wire import PROOF_FILES, BundleProof, SignedRecord
from samespace.sdk.signing import SigningKey, TrustStore


@pytest.fixture
def proof(gallery_world) -> BundleProof:
    return proof_of(Bundle.open(gallery_world.bundle("phone")))


def test_separation_is_the_share_of_others_that_the_own_pair_beats(gallery_world) -> None:
    generator = np.random.default_rng(0)
    own, other = gallery_world.embed("phone", gallery_world.probes[:9]), gallery_world.embed("cloud", gallery_world.probes[:9])
    other[3] = other[4]  # a tie
    shuffled = other[generator.permutation(9)]
    for against in (other, shuffled):
        expected = []
        for i in range(9):
            wins = [
                1.0 if own[i] @ against[i] > own[i] @ against[j] else 0.5 if np.array_equal(against[i], against[j]) else 0.0
                for j in range(9)
                if j != i
            ]
            expected.append(np.mean(wins))
        np.testing.assert_allclose(own_separation(own, against), expected, atol=1e-12)


def test_the_record_holds_what_the_probes_give(gallery_world, proof) -> None:
    evidence = verified_evidence(proof, TrustStore.default())
    record = measured_record(evidence)
    cosines = np.sum(evidence.own * evidence.cloud, axis=1)
    assert record.verdict == "pass"
    assert record.query_id == gallery_world.records["phone"].model_id
    assert record.gallery_model_id == gallery_world.records["cloud"].model_id
    assert record.report["n"] == len(gallery_world.probes)
    assert record.report["cosine"]["mean"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert record.report["cosine"]["min"] == pytest.approx(cosines.min(), abs=1e-6)
    assert record.report["mistakes"]["bgr"]["mean"] < record.report["cosine"]["mean"]
    assert record.report["separation"]["low"] >= MIN_SEPARATION
    assert record.report["evidence"] == [{"pair": "tests"}]
    assert record == measured_record(evidence)


def test_any_changed_byte_of_the_proof_is_refused(proof) -> None:
    generator = np.random.default_rng(0)

    def changed(data: bytes) -> bytes:
        position = int(generator.integers(len(data)))
        return data[:position] + bytes([data[position] ^ 1 << int(generator.integers(8))]) + data[position + 1 :]

    for _ in range(20):
        with pytest.raises(SignatureError):
            verified_evidence(proof.model_copy(update={"manifest": changed(proof.manifest)}), TrustStore.default())
        with pytest.raises((SignatureError, BundleError)):
            verified_evidence(proof.model_copy(update={"signature": changed(proof.signature)}), TrustStore.default())
        for path in PROOF_FILES:
            files = {**proof.files, path: changed(proof.files[path])}
            with pytest.raises(IntegrityError, match=path):
                verified_evidence(proof.model_copy(update={"files": files}), TrustStore.default())


def test_a_proof_lacks_nothing_and_holds_nothing_else(proof) -> None:
    for path in PROOF_FILES:
        files = {name: data for name, data in proof.files.items() if name != path}
        with pytest.raises(IntegrityError, match=f"{path}: is listed in the manifest, but was not sent"):
            verified_evidence(proof.model_copy(update={"files": files}), TrustStore.default())
    for path in ("artifacts/model.onnx", "../../etc/passwd"):
        with pytest.raises(IntegrityError, match="does not belong to the proof"):
            verified_evidence(proof.model_copy(update={"files": {**proof.files, path: b""}}), TrustStore.default())


def test_strangers_are_believed_only_if_allowed(gallery_world, proof, tmp_path) -> None:
    nobody = TrustStore(tmp_path)
    with pytest.raises(SignatureError, match="not trusted here"):
        verified_evidence(proof, nobody)
    assert verified_evidence(proof, nobody, allow_unsigned=True).signer == gallery_world.signer.key_id
    unsigned = proof_of(Bundle.open(gallery_world.bundle("phone", signed=False), allow_unsigned=True))
    with pytest.raises(SignatureError, match="nobody signed"):
        verified_evidence(unsigned, TrustStore.default())
    assert verified_evidence(unsigned, TrustStore.default(), allow_unsigned=True).signer is None


def test_a_record_is_believed_by_its_signature(gallery_world, proof, tmp_path) -> None:
    record = measured_record(verified_evidence(proof, TrustStore.default()))
    trust = TrustStore.default()
    good = signed_record(record, gallery_world.signer)
    assert verified_record(SignedRecord.model_validate_json(good.model_dump_json()), trust) == gallery_world.signer.key_id
    with pytest.raises(SignatureError, match="was changed"):
        verified_record(good.model_copy(update={"record": record.model_copy(update={"verdict": "fail"})}), trust)
    with pytest.raises(SignatureError, match="does not fit"):
        verified_record(good.model_copy(update={"signature": good.signature[:-1]}), trust)
    with pytest.raises(SignatureError, match="32 bytes"):
        verified_record(good.model_copy(update={"public_key": b"short"}), trust)
    with pytest.raises(SignatureError, match=r"does not trust.*keys trust"):
        verified_record(signed_record(record, SigningKey.new()), trust)
    with pytest.raises(SignatureError, match="is not signed"):
        verified_record(signed_record(record, None), trust)
    assert verified_record(signed_record(record, None), trust, allow_unsigned=True) is None


def test_a_good_device_is_hardly_ever_refused_and_a_bgr_one_always(gallery_world, proof) -> None:
    report = measured_record(verified_evidence(proof, TrustStore.default())).report
    policy = HandshakePolicy()
    for _ in range(20):
        images = [gallery_world.picture() for _ in range(policy.pictures)]
        expected = gallery_world.embed("cloud", images)
        good = judge_by_record(gallery_world.embed("phone", images), expected, report, policy)
        bad = judge_by_record(gallery_world.embed("phone", images, bgr=True), expected, report, policy)
        assert good.accepted, good.reason
        assert not bad.accepted
        alone = judge_by_record(gallery_world.embed("stranger", images), expected, report, policy)
        assert not alone.accepted


def test_the_reason_names_a_known_mistake_only_if_it_fits(gallery_world) -> None:
    images = [gallery_world.picture() for _ in range(32)]
    expected = gallery_world.embed("cloud", images)
    answer = expected + 0.25 * np.random.default_rng(0).normal(size=expected.shape)
    answer = (answer / np.linalg.norm(answer, axis=1, keepdims=True)).astype(np.float32)
    mean = float(np.sum(answer * expected, axis=1).mean())
    report = {"n": 64, "cosine": {"mean": 0.99, "std": 0.01}, "mistakes": {"bgr": {"mean": mean + 0.01}, "exif": {"mean": 0.2}}}
    judgement = judge_by_record(answer, expected, report, HandshakePolicy())
    assert not judgement.accepted
    assert "'bgr'" in judgement.reason
    assert "'exif'" not in judgement.reason
    # Two that one number cannot tell apart are both named, the nearer one first.
    both = {"wide": {"mean": mean - 0.05, "std": 0.1}, "bgr": {"mean": mean + 0.01}}
    assert re.search(
        "'bgr' .* or 'wide' ", judge_by_record(answer, expected, {**report, "mistakes": both}, HandshakePolicy()).reason
    )
    far = judge_by_record(answer, expected, {**report, "mistakes": {"exif": {"mean": 0.2}}}, HandshakePolicy())
    assert "no known mistake explains it" in far.reason


@pytest.mark.parametrize("report", [{}, {"cosine": "high"}, {"cosine": {"mean": float("nan"), "std": 1}}, {"mistakes": [1]}])
def test_a_record_from_elsewhere_without_cosines_leaves_separation(gallery_world, report: dict) -> None:
    images = gallery_world.probes
    expected = gallery_world.embed("cloud", images)
    assert judge_by_record(gallery_world.embed("phone", images), expected, report, HandshakePolicy()).accepted
    assert not judge_by_record(gallery_world.embed("stranger", images), expected, report, HandshakePolicy()).accepted


def test_the_own_model_is_held_to_its_precision() -> None:
    expected = np.eye(8, dtype=np.float32)
    for precision, gates, angle, accepted in (
        ("fp32", {"fp32": {"worst_cosine": 0.99999}}, 0.008, True),
        ("fp32", {"fp32": {"worst_cosine": 0.99999}}, 0.01, False),
        ("int8", {"int8": {"worst_cosine": 0.98}}, 0.38, True),
        ("int8", {}, 0.7, False),
        ("fp16", {}, 0.06, True),
    ):
        answer = expected.copy()
        answer[2, 2], answer[2, 3] = np.cos(angle), np.sin(angle)
        assert judge_same_model(answer, expected, gates, precision).accepted == accepted, (precision, angle)


def test_broken_signed_content_is_a_bundle_error(gallery_world, proof) -> None:
    evidence = verified_evidence(proof, TrustStore.default())
    for files, message in (
        ({}, "no probes/reference"),
        ({PROOF_FILES[0]: b"junk"}, "not a safetensors file"),
        ({**proof.files, PROOF_FILES[2]: b"{"}, "broken JSON"),
    ):
        with pytest.raises(BundleError, match=message):
            type(evidence)(evidence.manifest, None, files)
    assert type(evidence)(evidence.manifest, None, {**proof.files, PROOF_FILES[2]: json.dumps({"a": 1}).encode()}).measured == [
        {"a": 1}
    ]
