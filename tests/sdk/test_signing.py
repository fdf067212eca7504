"""Keys and trust."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from samespace.sdk.errors import ConfigError, SignatureError
from samespace.sdk.identity import digest
from samespace.sdk.signing import PublicKey, SigningKey, TrustStore, config_dir, key_path

KEY, OTHER = SigningKey.new(), SigningKey.new()


@given(data=st.binary(max_size=200), flip=st.integers(0, 511))
def test_a_signature_fits_its_data_and_key_only(data: bytes, flip: int) -> None:
    signature = KEY.sign(data)
    assert KEY.public.verify(data, signature)
    assert signature == KEY.sign(data)
    assert not OTHER.public.verify(data, signature)
    assert not KEY.public.verify(data + b"\0", signature)
    flipped = bytearray(signature)
    flipped[flip // 8] ^= 1 << flip % 8
    assert not KEY.public.verify(data, bytes(flipped))


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_does_not_fit(length: int) -> None:
    assert not KEY.public.verify(b"data", bytes(length))


def test_key_ids() -> None:
    assert KEY.key_id == KEY.public.key_id == digest(KEY.public.raw)[:16]
    assert KEY.key_id != OTHER.key_id


def test_a_private_key_does_not_show() -> None:
    assert repr(KEY) == "SigningKey()"


def test_keys_survive_their_files(tmp_path: Path) -> None:
    KEY.save(tmp_path / "keys" / "mine.pem")
    (tmp_path / "mine.pub.pem").write_bytes(KEY.public.to_pem())
    assert SigningKey.load(tmp_path / "keys" / "mine.pem").sign(b"data") == KEY.sign(b"data")
    assert PublicKey.load(tmp_path / "mine.pub.pem") == KEY.public


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_a_private_key_is_its_owners_whatever_the_umask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0)
    try:
        KEY.save(tmp_path / "mine.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "mine.pem").stat().st_mode) == 0o600
    SigningKey.load(tmp_path / "mine.pem")
    assert not caplog.text
    (tmp_path / "mine.pem").chmod(0o640)
    SigningKey.load(tmp_path / "mine.pem")
    assert "chmod 600" in caplog.text


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    KEY.save(tmp_path / "mine.pem")
    with pytest.raises(ConfigError, match="not overwritten"):
        OTHER.save(tmp_path / "mine.pem")
    assert SigningKey.load(tmp_path / "mine.pem").key_id == KEY.key_id
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pem"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_reads_our_keys_and_we_read_its(tmp_path: Path) -> None:
    KEY.save(tmp_path / "ours.pem")
    (tmp_path / "data").write_bytes(b"a manifest")
    for command in (
        "pkeyutl -sign -rawin -inkey ours.pem -in data -out signature",
        "genpkey -algorithm ed25519 -out theirs.pem",
        "pkey -in theirs.pem -pubout -out theirs.pub.pem",
    ):
        subprocess.run(["openssl", *command.split()], check=True, cwd=tmp_path)
    assert (tmp_path / "signature").read_bytes() == KEY.sign(b"a manifest")
    assert SigningKey.load(tmp_path / "theirs.pem").public == PublicKey.load(tmp_path / "theirs.pub.pem")


def pem(key: Ed25519PrivateKey | rsa.RSAPrivateKey, password: bytes | None = None) -> bytes:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


def test_files_that_hold_no_private_key(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    with pytest.raises(ConfigError, match=r"key\.pem: no such key file; make one with 'samespace keys new'"):
        SigningKey.load(file)
    with pytest.raises(ConfigError, match="no such key file"):
        SigningKey.load(tmp_path)
    ed25519, foreign = Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 1024)
    for content, problem in (
        (b"", "no private key"),
        (b"some text", "no private key"),
        (KEY.public.to_pem(), "no private key"),
        (pem(ed25519)[:60], "no private key"),
        (pem(ed25519, b"secret"), "encrypted"),
        (pem(foreign), "another kind"),
        (pem(ed25519) + b" " * 20_000, "too large"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=problem) as caught:
            SigningKey.load(file)
        assert "key.pem" in str(caught.value)


def test_files_that_hold_no_public_key(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    foreign = rsa.generate_private_key(65537, 1024).public_key()
    for content, problem in (
        (b"", "no public key"),
        (pem(Ed25519PrivateKey.generate()), "private key: keep it to yourself"),
        (foreign.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "another kind"),
    ):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=problem):
            PublicKey.load(file)


SMALL_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "01" + "00" * 30 + "80",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "ec" + "ff" * 30 + "7f",
]


@pytest.mark.parametrize("raw", SMALL_ORDER)
def test_keys_that_anybody_can_sign_for_are_refused(raw: str) -> None:
    with pytest.raises(SignatureError, match="anybody can sign"):
        PublicKey(bytes.fromhex(raw))


def test_such_keys_are_a_real_danger() -> None:
    # The neutral element as key and as R, S = 0: one "signature" for every message.
    neutral = bytes.fromhex("01" + "00" * 31)
    for message in (b"one manifest", b"another"):
        Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), message)


def test_small_order_by_slow_arithmetic() -> None:
    # RFC 8032, 5.1: doubling (x, y) three times on the curve -x2 + y2 = 1 + d x2 y2 gives the neutral element (0, 1).
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    for raw in SMALL_ORDER:
        encoded = int.from_bytes(bytes.fromhex(raw), "little")
        y = encoded % 2**255 % p
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        x = x if x * x % p == square else x * pow(2, (p - 1) // 4, p) % p
        assert x * x % p == square
        for _ in range(3):
            product = d * x * x * y * y
            x, y = 2 * x * y * pow(1 + product, -1, p) % p, (y * y + x * x) * pow(1 - product, -1, p) % p
        assert (x, y) == (0, 1)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_public_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(SignatureError, match="32 bytes"):
        PublicKey(bytes([7]) * length)


# --- trust ------------------------------------------------------------------------------------------


def test_trust_is_given_and_taken(tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "trusted")
    assert store.list() == ()
    assert store.find(KEY.public) is None
    store.add(KEY.public, "us")
    store.add(OTHER.public, "them")
    assert [(trusted.name, trusted.key) for trusted in store.list()] == [("them", OTHER.public), ("us", KEY.public)]
    found = store.find(KEY.public)
    assert found is not None
    assert (found.name, found.key_id) == ("us", KEY.key_id)
    assert store.remove(KEY.key_id).name == "us"
    assert store.find(KEY.public) is None
    assert [trusted.name for trusted in TrustStore(tmp_path / "trusted").list()] == ["them"]
    with pytest.raises(ConfigError, match=f"no trusted key has the id '{KEY.key_id}'; trusted are: {OTHER.key_id} \\(them\\)"):
        store.remove(KEY.key_id)


def test_trusting_again_renames(tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    for name in ("us", "us", "we"):
        store.add(KEY.public, name)
    assert [trusted.name for trusted in store.list()] == ["we"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_stands_for_one_key(tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    store.add(KEY.public, "us")
    with pytest.raises(ConfigError, match=f"belongs to the trusted key {KEY.key_id}"):
        store.add(OTHER.public, "us")
    assert store.find(OTHER.public) is None


@pytest.mark.parametrize("name", ["", "../us", "a/b", "a.b", "-x", "ü", "a b", "a" * 65, "a\n"])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    for call in (lambda: TrustStore(tmp_path).add(KEY.public, name), lambda: key_path(name)):
        with pytest.raises(ConfigError, match="cannot name a key"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_the_content_of_a_file_decides_not_its_name(tmp_path: Path) -> None:
    store = TrustStore(tmp_path)
    (tmp_path / f"{KEY.key_id}.us.pem").write_bytes(OTHER.public.to_pem())
    assert store.find(KEY.public) is None
    assert store.find(OTHER.public) is not None
    store.remove(OTHER.key_id)
    assert store.list() == ()


def test_a_broken_file_in_the_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "0123.us.pem").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match=r"0123\.us\.pem: holds no public key"):
        TrustStore(tmp_path).list()


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        TrustStore(tmp_path / "file" / "trusted").add(KEY.public, "us")
    with pytest.raises(ConfigError, match="cannot be written"):
        KEY.save(tmp_path / "file" / "us.pem")


def test_where_keys_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path))
    assert key_path() == tmp_path / "keys" / "default.pem"
    assert TrustStore.default().folder == tmp_path / "trusted"
    KEY.save(key_path())
    assert SigningKey.load().key_id == KEY.key_id
    monkeypatch.delenv("SAMESPACE_CONFIG_DIR")
    assert config_dir().name == "samespace"
