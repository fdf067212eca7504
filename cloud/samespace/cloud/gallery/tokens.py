"""Tokens that only this service can make: what it once said, under its seal, so that it need not remember it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from samespace.sdk.gallery.wire import UnknownTokenError
from samespace.sdk.identity import canonical_json

__all__ = ["TokenMaker"]

_MEND = "shake hands again"
_REMEMBERED = 1024


class TokenMaker:
    """Makes and reads tokens: a JSON payload and its HMAC-SHA-256.

    Args:
        secret: at least 32 random bytes.
        clock: seconds since whenever; injectable for tests.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        if len(secret) < 32:
            raise ValueError("a secret of fewer than 32 bytes can be guessed")
        self._secret = secret
        self._clock = clock
        #: A token comes with every request of its holder: what is ours stays ours. Refusals are not remembered.
        self._payload = lru_cache(_REMEMBERED)(self._opened)

    def make(self, kind: str, content: dict[str, Any], seconds: float) -> str:
        """A token of some ``kind`` that is good for so many seconds."""
        payload = canonical_json({"kind": kind, "until": self._clock() + seconds, "content": content})
        return f"{_text(payload)}.{_text(self._mac(payload))}"

    def read(self, kind: str, token: str) -> dict[str, Any]:
        """The content of a token.

        Raises:
            UnknownTokenError: it is not ours, of another kind, or too old.
        """
        fields = self._payload(token)
        if fields["kind"] != kind:
            raise UnknownTokenError(f"this is a token for something else ({fields['kind']}, not {kind}); {_MEND}")
        if fields["until"] < self._clock():
            raise UnknownTokenError(f"this token has expired; {_MEND}")
        return fields["content"]

    def _opened(self, token: str) -> dict[str, Any]:
        try:
            payload, mac = (base64.b64decode(part.encode("ascii"), b"-_", validate=True) for part in token.split("."))
        except ValueError:
            raise UnknownTokenError(f"this is no token of this gallery; {_MEND}") from None
        if not hmac.compare_digest(mac, self._mac(payload)):
            raise UnknownTokenError(f"this token was not given by this gallery, or before it was started again; {_MEND}")
        return json.loads(payload)

    def _mac(self, payload: bytes) -> bytes:
        return hmac.new(self._secret, payload, hashlib.sha256).digest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii")
