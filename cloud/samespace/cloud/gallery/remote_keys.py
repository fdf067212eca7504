"""The API keys of a running service, for who has an administrator's key."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from samespace.sdk.errors import ConfigError, GalleryError, GalleryUnavailableError
from samespace.sdk.gallery.connection import first_complaint
from samespace.sdk.gallery.wire import API, GalleryHealth, Problem, error_of
from samespace.sdk.gallery.wire_admin import KeyInfo, KeyList, NewKey, NewKeyRequest, Role

__all__ = ["RemoteKeys"]

_Answer = TypeVar("_Answer", bound=BaseModel)


class RemoteKeys:
    """Does what :class:`~samespace.cloud.gallery.keys.KeyRing` does, over HTTP. A context manager."""

    def __init__(self, url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(base_url=url, headers={"X-Api-Key": key} if key else {}, timeout=30.0, transport=transport)

    def create(self, role: Role, tenant: str = "", name: str = "") -> tuple[str, KeyInfo]:
        """A new key: its text, and what is kept."""
        try:
            message = NewKeyRequest(role=role, tenant=tenant, name=name)
        except ValidationError as error:
            raise ConfigError(f"no such key can be made: {first_complaint(error)}") from None
        made = self._call("POST", f"{API}/keys", NewKey, message)
        return made.key, made.info

    def list(self) -> tuple[KeyInfo, ...]:
        """The keys of the administrator's tenant."""
        return self._call("GET", f"{API}/keys", KeyList).keys

    def revoke(self, key_id: str) -> KeyInfo:
        """Let a key not be good any more."""
        return self._call("DELETE", f"{API}/keys/{key_id}", KeyInfo)

    def health(self) -> GalleryHealth:
        """What the service holds; a reader's key is enough."""
        return self._call("GET", f"{API}/health", GalleryHealth)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def _call(self, method: str, path: str, answer: type[_Answer], message: BaseModel | None = None) -> _Answer:
        content = None if message is None else message.model_dump_json()
        url = self._http.base_url
        try:
            response = self._http.request(method, path, content=content, headers={"Content-Type": "application/json"})
        except httpx.TransportError as error:
            raise GalleryUnavailableError(f"no gallery answers at {url} ({error}); correct --gallery") from None
        try:
            if response.is_success:
                return answer.model_validate_json(response.content)
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            raise GalleryError(f"{url} answered HTTP {response.status_code}, but not as a gallery; check the URL") from None
        raise error_of(problem.code, problem.detail)
