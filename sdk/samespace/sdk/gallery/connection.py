"""One request to a gallery service and its answer: encoding, retries, and problems turned back into errors. Pure: the
requests are steps, which a runner does.
"""

from __future__ import annotations

import os
import warnings
from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from samespace.sdk.errors import ConfigError, EmbeddingError, GalleryError, HandshakeRefusedError
from samespace.sdk.gallery.retry import RetryPolicy
from samespace.sdk.gallery.steps import Send, Steps
from samespace.sdk.gallery.wire import Problem, error_of

__all__ = ["KEY_VARIABLE", "Answer", "Connection", "ForeignAnswerError", "GalleryWarning", "first_complaint"]

Answer = TypeVar("Answer", bound=BaseModel)
#: Environment variable that holds the API key of who gives none.
KEY_VARIABLE = "SAMESPACE_GALLERY_KEY"
#: Header in which a service says what it will not answer for, though it answers.
_WARNING = "x-samespace-warning"
#: So many different ones are remembered.
_MOST_WARNINGS = 100


class ForeignAnswerError(GalleryError):
    """What answers at the gallery's URL is no gallery: a proxy, a login page, another version."""


class GalleryWarning(UserWarning):
    """The service answers, but says that its answers may be wrong: an unverified device, queries that drift."""


class Connection:
    """How to talk to the service at a URL; arguments as for :class:`~samespace.sdk.gallery.client.GalleryClient`.

    Raises:
        ConfigError: the URL is none, or the API key cannot be one.
    """

    def __init__(self, url: str, *, retry: RetryPolicy | None = None, api_key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is not the URL of a gallery; it starts with http:// or https://")
        key = (os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key).strip()
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"the API key (or {KEY_VARIABLE}) holds characters that no key has; copy it again")
        self.url = url.rstrip("/")
        self._retry = retry or RetryPolicy()
        self._headers = {"X-Api-Key": key} if key else {}
        #: What the service warned of so far, each once.
        self.warnings: tuple[str, ...] = ()

    def call(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        message: BaseModel | None = None,
        *,
        token: str | None = None,
        once: str | None = None,
    ) -> Steps[Answer]:
        """Send a message and parse the answer.

        Args:
            token: of a handshake.
            once: idempotency key: however often this is sent, the service does it once.

        Raises:
            SamespaceError: the one that the service refused with.
            GalleryUnavailableError: nobody answers.
            ForeignAnswerError: somebody else answers.

        Warns:
            GalleryWarning: what the service warns of, each text once a client.
        """
        headers = dict(self._headers)
        if message is not None:
            headers["Content-Type"] = "application/json"
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if once is not None:
            headers["Idempotency-Key"] = once
        body = None if message is None else message.model_dump_json(exclude=_unsaid(message)).encode()
        response = yield from self._retry.answered(Send(method, self.url + path, headers, body), self.url)
        self._heed(response.headers.get_list(_WARNING))
        if response.is_success:
            return self._parsed(response, answer)
        problem = self._parsed(response, Problem)
        error = error_of(problem.code, problem.detail)
        if isinstance(error, HandshakeRefusedError | EmbeddingError):
            error.causes = problem.diagnosis
        raise error

    def _heed(self, texts: list[str]) -> None:
        for text in texts:
            if text not in self.warnings and len(self.warnings) < _MOST_WARNINGS:
                self.warnings += (text,)
                warnings.warn(f"{self.url}: {text}", GalleryWarning, stacklevel=2)

    def _parsed(self, response: httpx.Response, kind: type[Answer]) -> Answer:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise ForeignAnswerError(
                f"{self.url} answered HTTP {response.status_code}, but not as a gallery of this samespace "
                f"({first_complaint(error)}); check the URL and the versions on both sides"
            ) from None


def _unsaid(message: BaseModel) -> set[str]:
    """Fields that were added to a message later travel only when they say something: older services know only the rest."""
    fields = type(message).model_fields
    return {name for name in getattr(message, "LATER", ()) if getattr(message, name) == fields[name].default}


def first_complaint(error: ValidationError) -> str:
    """``field: what is wrong with it``."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(str(step) for step in first['loc']) or 'content'}: {first['msg']}"
