"""Signing compatibility records, and believing them."""

from __future__ import annotations

from samespace.sdk.errors import SignatureError
from samespace.sdk.gallery.wire import SignedRecord
from samespace.sdk.identity import CompatibilityRecord, canonical_json
from samespace.sdk.signing import PublicKey, SigningKey, TrustStore

__all__ = ["signed_record", "verified_record"]

#: Goes before the record into what is signed, so that no signature of ours over something else can be passed off as
#: this.
_PURPOSE = b"samespace compatibility record\n"


def signed_record(record: CompatibilityRecord, key: SigningKey | None) -> SignedRecord:
    """A record with its signature; without a key, only a service that allows unsigned records takes it."""
    if key is None:
        return SignedRecord(record=record, public_key=None, signature=None)
    return SignedRecord(record=record, public_key=key.public.raw, signature=key.sign(_message(record)))


def verified_record(message: SignedRecord, trust: TrustStore, *, allow_unsigned: bool = False) -> str | None:
    """Id of the key that signed the record; None for an unsigned one that is allowed.

    Raises:
        SignatureError: unsigned, signed by a key that is not in ``trust``, or a signature that does not fit.
    """
    name = f"the compatibility record of {message.record.query_id}"
    if message.public_key is None or message.signature is None:
        if allow_unsigned:
            return None
        raise SignatureError(f"{name} is not signed; sign it with a key that this gallery trusts (samespace keys)")
    key = PublicKey(message.public_key)
    if len(message.signature) != 64 or not key.verify(_message(message.record), message.signature):
        raise SignatureError(f"the signature does not fit {name}: one of them was changed; sign it again")
    if trust.find(key) is None and not allow_unsigned:
        raise SignatureError(
            f"{name} is signed by the key {key.key_id}, which this gallery does not trust; run 'samespace keys trust "
            "FILE' where the gallery runs"
        )
    return key.key_id


def _message(record: CompatibilityRecord) -> bytes:
    return _PURPOSE + canonical_json(record.model_dump(mode="json"))
