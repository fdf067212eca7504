"""One request to a gallery service and its answer: encoding, retries, and problems turned back into errors."""

from __future__ import annotations

from typing import TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from samespace.sdk.errors import ConfigError, GalleryError
from samespace.sdk.gallery.retry import RetryPolicy
from samespace.sdk.gallery.wire import Problem, error_of

__all__ = ["Answer", "Connection", "first_complaint"]

Answer = TypeVar("Answer", bound=BaseModel)


class Connection:
    """Talks to the service at a URL; arguments as for :class:`~samespace.sdk.gallery.client.GalleryClient`.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        *,
        transport: httpx.BaseTransport | None = None,
        timeout: float = 30.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is not the URL of a gallery; it starts with http:// or https://")
        self.url = url.rstrip("/")
        self._retry = retry or RetryPolicy()
        self._http = httpx.Client(transport=transport, timeout=timeout, follow_redirects=False)

    def call(
        self, method: str, path: str, answer: type[Answer], message: BaseModel | None = None, token: str | None = None
    ) -> Answer:
        """Send a message and parse the answer.

        Raises:
            SamespaceError: the one that the service refused with.
            GalleryUnavailableError: nobody answers.
            GalleryError: somebody else answers.
        """
        headers = {"Content-Type": "application/json"} if message is not None else {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = None if message is None else message.model_dump_json().encode()
        url = self.url + path
        response = self._retry.run(lambda: self._http.request(method, url, content=body, headers=headers), self.url)
        if response.is_success:
            return self._parsed(response, answer)
        problem = self._parsed(response, Problem)
        raise error_of(problem.code, problem.detail)

    def close(self) -> None:
        """Close what is open."""
        self._http.close()

    def _parsed(self, response: httpx.Response, kind: type[Answer]) -> Answer:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise GalleryError(
                f"{self.url} answered HTTP {response.status_code}, but not as a gallery of this samespace "
                f"({first_complaint(error)}); check the URL and the versions on both sides"
            ) from None


def first_complaint(error: ValidationError) -> str:
    """``field: what is wrong with it``."""
    first = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(str(step) for step in first['loc']) or 'content'}: {first['msg']}"
