"""Ed25519 keys: who signed a bundle, and whose signatures this machine trusts.

Keys live in the configuration folder (``SAMESPACE_CONFIG_DIR``, else the platform's): private ones in ``keys/NAME.pem``, the
public ones that are trusted in ``trusted/KEY_ID.NAME.pem``. Both are PEM (PKCS #8, SubjectPublicKeyInfo), which OpenSSL reads.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from samespace.sdk.errors import ConfigError, SignatureError
from samespace.sdk.files import atomic_write

__all__ = ["PublicKey", "SigningKey", "TrustStore", "TrustedKey", "config_dir", "key_path"]

_log = logging.getLogger(__name__)

#: No Ed25519 key in PEM comes near it; a larger file is something else.
_MAX_KEY_FILE = 16 * 1024
#: Points of small order (their sign bit left out): "signatures" of such a key fit any message, so it proves nothing.
_SMALL_ORDER = frozenset(
    int.from_bytes(bytes.fromhex(point), "little")
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def config_dir() -> Path:
    """Where keys live: ``SAMESPACE_CONFIG_DIR`` if it is set, else the platform's folder for configuration."""
    override = os.environ.get("SAMESPACE_CONFIG_DIR")
    return Path(override) if override else platformdirs.user_config_path("samespace", appauthor=False)


def key_path(name: str = "default") -> Path:
    """Where the private key ``name`` of this machine is kept.

    Raises:
        ConfigError: the name is not 1-64 letters, digits, ``-`` and ``_``.
    """
    return config_dir() / "keys" / f"{_checked_name(name)}.pem"


@dataclass(frozen=True)
class PublicKey:
    """Half of a key that verifies.

    Attributes:
        raw: the 32 bytes of the point.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise SignatureError(f"an Ed25519 public key has 32 bytes, this one has {len(self.raw)}")
        if int.from_bytes(self.raw, "little") % 2**255 in _SMALL_ORDER:
            raise SignatureError("this public key was made so that anybody can sign for it; do not trust who gave it to you")

    @property
    def key_id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the key: a name for people, never a proof."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether ``signature`` (64 bytes) is this key's over ``data``."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def to_pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM."""
        return Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Read a PEM file.

        Raises:
            ConfigError: there is no such file, or it holds no Ed25519 public key.
        """
        data = _read_key_file(path)
        if b"PRIVATE KEY" in data:
            raise ConfigError(
                f"{path}: this is a private key: keep it to yourself, and pass on the public one ({path.stem}.pub.pem)"
            )
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(
                f"{path}: holds no public key in PEM; 'samespace keys new' writes one beside the private key"
            ) from None
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(f"{path}: holds a key of another kind; bundles are signed with Ed25519 ('samespace keys new')")
        return cls(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


@dataclass(frozen=True)
class SigningKey:
    """The private key that signs bundles. Its bytes never show in a ``repr``."""

    _key: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def new(cls) -> SigningKey:
        """A fresh random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path | None = None) -> SigningKey:
        """Read a PEM file; without a path, the default key of this machine.

        Raises:
            ConfigError: there is no such file, or it holds no plain Ed25519 private key.
        """
        path = key_path() if path is None else path
        data = _read_key_file(path, hint="; make one with 'samespace keys new'")
        try:
            key = load_pem_private_key(data, password=None)
        except TypeError:
            raise ConfigError(
                f"{path}: the key is encrypted; write it without a passphrase (openssl pkey -in FILE -out FILE2)"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            raise ConfigError(f"{path}: holds no private key in PEM; make one with 'samespace keys new'") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path}: holds a key of another kind; bundles are signed with Ed25519 ('samespace keys new')")
        if os.name == "posix" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            _log.warning("%s can be read by other users of this machine; run: chmod 600 %s", path, path)
        return cls(key)

    def save(self, path: Path) -> None:
        """Write a PEM file that only its owner can read.

        Raises:
            ConfigError: a file is already there (a key is never overwritten), or the folder cannot be written.
        """
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            atomic_write(path, pem, mode=0o600, overwrite=False)
        except OSError as error:
            if os.path.lexists(path):
                raise ConfigError(
                    f"{path}: a key is already there and is not overwritten; choose another name or move it away"
                ) from None
            raise _not_written(path, error) from None

    def sign(self, data: bytes) -> bytes:
        """64 bytes of signature; the same data gives the same bytes."""
        return self._key.sign(data)

    @property
    def public(self) -> PublicKey:
        """The half to hand out."""
        return PublicKey(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @property
    def key_id(self) -> str:
        """Of the public half."""
        return self.public.key_id


@dataclass(frozen=True)
class TrustedKey:
    """A public key that this machine trusts, under the name that its owner goes by here."""

    name: str
    key: PublicKey

    @property
    def key_id(self) -> str:
        """Of the key."""
        return self.key.key_id


class TrustStore:
    """A folder of public keys; whoever can write to it decides whose bundles are opened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def default(cls) -> TrustStore:
        """The trust store of this user: ``trusted`` in the configuration folder."""
        return cls(config_dir() / "trusted")

    def list(self) -> tuple[TrustedKey, ...]:
        """All trusted keys, by name.

        Raises:
            ConfigError: a ``.pem`` file of the folder holds no Ed25519 public key.
        """
        paths = sorted(self.folder.glob("*.pem")) if self.folder.is_dir() else []
        # The content decides, not the file's name: a renamed file does not become another key.
        keys = (TrustedKey(path.stem.partition(".")[2] or path.stem, PublicKey.load(path)) for path in paths)
        return tuple(sorted(keys, key=lambda trusted: (trusted.name, trusted.key_id)))

    def find(self, key: PublicKey) -> TrustedKey | None:
        """The entry of exactly this key (all 32 bytes), if it is trusted."""
        return next((trusted for trusted in self.list() if trusted.key == key), None)

    def add(self, key: PublicKey, name: str) -> TrustedKey:
        """Trust ``key``; again under another name renames it.

        Raises:
            ConfigError: the name is not 1-64 letters, digits, ``-`` and ``_``, another key goes by it, or the folder cannot be
                written.
        """
        _checked_name(name)
        taken = next((trusted for trusted in self.list() if trusted.name == name and trusted.key != key), None)
        if taken is not None:
            raise ConfigError(
                f"the name {name!r} belongs to the trusted key {taken.key_id}; choose another, or untrust that one first"
            )
        path = self.folder / f"{key.key_id}.{name}.pem"
        try:
            atomic_write(path, key.to_pem())
        except OSError as error:
            raise _not_written(path, error) from None
        for other in self._paths(key):
            if other != path:
                other.unlink()
        return TrustedKey(name, key)

    def remove(self, key_id: str) -> TrustedKey:
        """Trust the key with this id no longer.

        Raises:
            ConfigError: no such key is trusted.
        """
        found = next((trusted for trusted in self.list() if trusted.key_id == key_id), None)
        if found is None:
            known = ", ".join(f"{trusted.key_id} ({trusted.name})" for trusted in self.list()) or "none"
            raise ConfigError(f"no trusted key has the id {key_id!r}; trusted are: {known}")
        for path in self._paths(found.key):
            path.unlink()
        return found

    def _paths(self, key: PublicKey) -> tuple[Path, ...]:
        return tuple(path for path in sorted(self.folder.glob("*.pem")) if PublicKey.load(path) == key)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a key: take 1 to 64 letters, digits, '-' and '_'")
    return name


def _not_written(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be written ({error.strerror}); set SAMESPACE_CONFIG_DIR to a folder of yours")


def _read_key_file(path: Path, hint: str = "") -> bytes:
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: no such key file{hint}")
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > _MAX_KEY_FILE:
        raise ConfigError(f"{path}: too large to be a key in PEM")
    return data
