"""API keys: who may use the service, in which role, for which tenant.

A key is ``ssk_<id>_<secret>``; only the SHA-256 of the secret is kept. The secret has 256 random bits, so no slow hash is
needed: there is nothing to guess. A revoked key stays on the list, so that logs can still be read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from samespace.cloud.gallery.shelf import Shelf
from samespace.sdk.errors import ConfigError
from samespace.sdk.gallery.wire_admin import TENANT, ApiKeyError, KeyInfo, Role

__all__ = ["ROLES", "KeyRing"]

#: Each may do what those before it may.
ROLES: tuple[Role, ...] = ("reader", "writer", "admin")
_KIND = "api-key"
#: Seconds for which a key that was found good is believed without asking the store: so long a key that another process revoked
#: may still be used.
_BELIEVED = 2.0
#: Most keys that are remembered so.
_REMEMBERED = 4096
_FORM = re.compile(r"ssk_(?P<id>[0-9a-f]{12})_(?P<secret>[A-Za-z0-9_-]{43})")


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    info: KeyInfo
    secret_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class KeyRing:
    """The keys of one store; safe to share between threads.

    Args:
        shelf: keeps them.
        clock: seconds since 1970; for tests.
    """

    def __init__(self, shelf: Shelf, clock: Callable[[], float] = time.time) -> None:
        self._shelf, self._clock = shelf, clock
        self._believed: dict[str, tuple[float, KeyInfo]] = {}

    def create(self, role: Role, tenant: str = "", name: str = "") -> tuple[str, KeyInfo]:
        """A new key: its text, which is shown only now, and what is kept.

        Raises:
            ConfigError: no such role, or a tenant that is no name.
        """
        if role not in ROLES:
            raise ConfigError(f"{role!r} is no role of a key; there are: {', '.join(ROLES)}")
        if not re.fullmatch(TENANT, tenant):
            raise ConfigError(f"{tenant!r} is no name of a tenant; use up to 64 of a-z, 0-9, '.', '_' and '-'")
        key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        info = KeyInfo(key_id=key_id, role=role, tenant=tenant, name=name, created=self._clock(), revoked=None)
        self._put(_Entry(info=info, secret_sha256=_hash(secret)))
        return f"ssk_{key_id}_{secret}", info

    def check(self, text: str) -> KeyInfo:
        """Whose key this is.

        Raises:
            ApiKeyError: nobody's, or a revoked one. The message does not say which, and never repeats the key.
        """
        if (known := self.believed(text)) is not None:
            return known
        fingerprint, now = _hash(text), self._clock()
        form = _FORM.fullmatch(text)
        content = self._shelf.get(_KIND, form["id"]) if form else None
        entry = _Entry.model_validate_json(content) if content is not None else None
        # Compared also where there is nothing to compare with, so that time does not tell which ids there are.
        fits = hmac.compare_digest(_hash(form["secret"] if form else ""), entry.secret_sha256 if entry else _hash("-"))
        if entry is None or not fits or entry.info.revoked is not None:
            raise ApiKeyError("this API key is not, or no longer, valid here; ask this gallery's administrator for another")
        if len(self._believed) >= _REMEMBERED:
            self._believed.clear()
        self._believed[fingerprint] = (now + _BELIEVED, entry.info)
        return entry.info

    def believed(self, text: str) -> KeyInfo | None:
        """Whose key this is, if it was found good a moment ago; does not ask the store."""
        until, known = self._believed.get(_hash(text), (0.0, None))
        return known if known is not None and self._clock() < until else None

    def revoke(self, key_id: str, tenant: str | None = None) -> KeyInfo:
        """Let a key not be good any more: at once here, within 2 seconds in other processes of the same store.

        Args:
            tenant: only a key of this one; by default of any.

        Raises:
            ConfigError: there is no such key.
        """
        content = self._shelf.get(_KIND, key_id)
        entry = _Entry.model_validate_json(content) if content is not None else None
        if entry is None or tenant not in (None, entry.info.tenant):
            raise ConfigError(f"there is no key {key_id!r}; list them with 'samespace gallery key list'")
        if entry.info.revoked is None:
            entry = entry.model_copy(update={"info": entry.info.model_copy(update={"revoked": self._clock()})})
            self._put(entry)
        self._believed.clear()
        return entry.info

    def list(self, tenant: str | None = None) -> tuple[KeyInfo, ...]:
        """All keys, or a tenant's, oldest first; revoked ones too."""
        infos = (_Entry.model_validate_json(content).info for content in self._shelf.all(_KIND).values())
        return tuple(sorted((i for i in infos if tenant in (None, i.tenant)), key=lambda i: (i.created, i.key_id)))

    def _put(self, entry: _Entry) -> None:
        self._shelf.put(_KIND, entry.info.key_id, entry.model_dump_json().encode())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def may(role: Role, needed: Role) -> bool:
    """Whether a role may do what another may."""
    return ROLES.index(role) >= ROLES.index(needed)
