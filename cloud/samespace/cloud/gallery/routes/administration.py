"""API keys and drift: what the administrator of a tenant, or of the whole service, looks after."""

from __future__ import annotations

from fastapi import APIRouter

from samespace.cloud.gallery.keys import KeyRing
from samespace.cloud.gallery.routes.dependencies import AdminOf, DriftOf, PathText, ServiceSettings, SettingsOf
from samespace.sdk.gallery.wire import API
from samespace.sdk.gallery.wire_admin import DriftReport, ForbiddenError, KeyInfo, KeyList, NewKey, NewKeyRequest

router = APIRouter(prefix=API, tags=["administration"])


@router.post("/keys")
def create_key(message: NewKeyRequest, settings: SettingsOf, caller: AdminOf) -> NewKey:
    """Make a key; its text is shown only in this answer. A tenant's administrator makes keys of that tenant."""
    if caller.tenant and message.tenant not in ("", caller.tenant):
        raise ForbiddenError(f"the key {caller.key_id} makes keys of the tenant {caller.tenant!r} only")
    key, info = _ring(settings).create(message.role, caller.tenant or message.tenant, message.name)
    return NewKey(key=key, info=info)


@router.get("/keys")
def list_keys(settings: SettingsOf, caller: AdminOf) -> KeyList:
    """All keys of the asking key's tenant; of all, for a key of none."""
    return KeyList(keys=_ring(settings).list(caller.tenant or None))


@router.delete("/keys/{key_id}")
def revoke_key(key_id: PathText, settings: SettingsOf, caller: AdminOf) -> KeyInfo:
    """Let a key not be good any more: at once here, within two seconds in other instances."""
    return _ring(settings).revoke(key_id, caller.tenant or None)


@router.get("/drift")
def drift_report(drift: DriftOf, caller: AdminOf) -> DriftReport:
    """Which kinds of clients send queries unlike those they began with."""
    return DriftReport(false_alarm_rate=drift.policy.false_alarm_rate, buckets=drift.report(caller.tenant or None))


def _ring(settings: ServiceSettings) -> KeyRing:
    if settings.keys is None:
        raise ForbiddenError("this gallery was started without API keys; start it with --keys")
    return settings.keys
