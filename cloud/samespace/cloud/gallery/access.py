"""Who asks: an API key becomes a caller with a role and a tenant."""

from __future__ import annotations

from dataclasses import dataclass

from samespace.cloud.gallery.keys import KeyRing, may
from samespace.sdk.gallery.wire_admin import ApiKeyError, ForbiddenError, Role

__all__ = ["EVERYBODY", "KEY_HEADER", "Caller", "caller_of", "require"]

KEY_HEADER = "X-Api-Key"


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        key_id: of the API key; empty where none is needed.
        role: what it may do.
        tenant: whose gallery it may use.
    """

    key_id: str
    role: Role
    tenant: str


#: The caller of a service that asks for no keys.
EVERYBODY = Caller("", "admin", "")


def caller_of(key: str | None, ring: KeyRing | None) -> Caller:
    """The caller with this key; without a ring, everybody.

    Raises:
        ApiKeyError: no key, a wrong or a revoked one.
    """
    if ring is None:
        return EVERYBODY
    if not key:
        raise ApiKeyError(
            f"this gallery needs an API key: send {KEY_HEADER}; its administrator makes one with 'gallery key create'"
        )
    info = ring.check(key)
    return Caller(info.key_id, info.role, info.tenant)


def require(caller: Caller, role: Role, *, operator: bool = False) -> None:
    """Let a caller pass who has at least this role.

    Args:
        operator: the matter concerns all tenants, so a key of one tenant will not do.

    Raises:
        ForbiddenError: it has not.
    """
    if not may(caller.role, role):
        raise ForbiddenError(f"the key {caller.key_id} has the role {caller.role!r}; this needs {role!r}")
    if operator and caller.tenant:
        raise ForbiddenError(
            f"the key {caller.key_id} belongs to the tenant {caller.tenant!r}; this concerns all and needs a key of none"
        )
