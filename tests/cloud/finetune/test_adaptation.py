"""Adaptations as files: signed, composed in any order, and taken out bit for bit."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from samespace.cloud.finetune.adaptation import Adaptation, composed, new_adaptation, read_adaptation, write_adaptation
from samespace.sdk.errors import ConfigError, IntegrityError, SignatureError
from samespace.sdk.signing import SigningKey, TrustStore

BASE_SHA = "1" * 64


def weights(seed: int, size: float = 1.0) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(seed)
    shapes = {"head.weight": (5, 7), "head.bias": (5,)}
    return {name: (size * chance.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def adaptation(seed: int, base: str = BASE_SHA) -> Adaptation:
    # Of very different sizes: sums in float32 would depend on the order.
    change = weights(seed, 10.0 ** (seed % 5 - 2))
    return new_adaptation(change, base_sha256=base, images=20, anchors=4, drift=0.01, penalty=1e-3)


@pytest.fixture
def signer(tmp_path: Path) -> tuple[SigningKey, TrustStore]:
    key, trust = SigningKey.new(), TrustStore(tmp_path / "trust")
    trust.add(key.public, "tests")
    return key, trust


def test_three_less_one_are_the_other_two_in_any_order() -> None:
    base, three = weights(0), [adaptation(seed) for seed in (1, 2, 3)]
    for order in permutations(three):
        assert_same(composed(base, BASE_SHA, order), composed(base, BASE_SHA, three))
    for out in three:
        rest = [one for one in three if one is not out]
        for name in base:
            exact = base[name].astype(np.float64) + sum(one.tensors[name].astype(np.float64) for one in rest)
            np.testing.assert_allclose(composed(base, BASE_SHA, rest)[name], exact, rtol=1e-6)
        assert_same(
            composed(base, BASE_SHA, [one for one in reversed(three) if one is not out]), composed(base, BASE_SHA, rest)
        )
    assert_same(composed(base, BASE_SHA, []), base)


def test_a_file_is_what_was_written_and_the_same_gives_the_same_bytes(tmp_path: Path, signer) -> None:
    key, trust = signer
    made = adaptation(1)
    for name in ("a", "b"):
        write_adaptation(tmp_path / name, made, key)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = read_adaptation(tmp_path / "a", trust)
    assert (read.record, read.adaptation_id) == (made.record, made.adaptation_id)
    assert_same(read.tensors, made.tensors)
    assert adaptation(2).adaptation_id != made.adaptation_id


def test_only_who_is_trusted_is_believed(tmp_path: Path, signer) -> None:
    key, trust = signer
    file = tmp_path / "file"
    write_adaptation(file, adaptation(1), None)
    with pytest.raises(SignatureError, match="not signed"):
        read_adaptation(file, trust)
    assert read_adaptation(file, trust, allow_unsigned=True).record.images == 20
    write_adaptation(file, adaptation(1), SigningKey.new())
    with pytest.raises(SignatureError, match="not trusted here"):
        read_adaptation(file, trust)
    write_adaptation(file, adaptation(1), key)
    metadata = _metadata(file)
    metadata = {name: value.replace('"drift": 0.01', '"drift": 0.001') for name, value in metadata.items()}
    file.write_bytes(safetensors.numpy.save(adaptation(1).tensors, metadata=metadata))
    for lenient in (False, True):
        with pytest.raises(SignatureError, match="something was changed"):
            read_adaptation(file, trust, allow_unsigned=lenient)


def test_damage_is_seen(tmp_path: Path, signer) -> None:
    key, trust = signer
    file = tmp_path / "file"
    with pytest.raises(ConfigError, match="no such adaptation"):
        read_adaptation(file, trust)
    write_adaptation(file, adaptation(1), key)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match="cut off"):
        read_adaptation(file, trust)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError, match="not those"):
        read_adaptation(file, trust)
    file.write_bytes(safetensors.numpy.save(weights(0)))
    with pytest.raises(ConfigError, match="no adaptation"):
        read_adaptation(file, trust)
    with pytest.raises(IntegrityError, match=r"head.bias holds NaN"):
        new_adaptation({"head.bias": np.full(5, np.nan, np.float32)}, base_sha256=BASE_SHA, images=1, anchors=0, drift=0.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: [adaptation(1, "2" * 64)], "adapt this release anew"),
        (lambda: [adaptation(1), adaptation(1)], "there twice"),
        (
            lambda: [new_adaptation({"tail": np.zeros(3, np.float32)}, base_sha256=BASE_SHA, images=1, anchors=0, drift=0.0)],
            "changes tail",
        ),
    ],
)
def test_what_does_not_belong_to_the_weights_is_refused(given, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        composed(weights(0), BASE_SHA, given())


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def _metadata(file: Path) -> dict[str, str]:
    with safetensors.safe_open(file, framework="numpy") as opened:
        return opened.metadata()
