"""How a service is run: from the command line's words to checked options."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, get_args

from samespace.cloud.gallery.handshake import HandshakePolicy
from samespace.cloud.gallery.limits import Limits
from samespace.sdk.errors import ConfigError

__all__ = ["ServeOptions", "request_log", "serve_options"]

Keys = Literal["auto", "on", "off"]
Policy = Literal["refuse", "warn"]
_Word = TypeVar("_Word", Keys, Policy)
#: Bytes of a secret: fewer can be guessed.
_SECRET = 32


@dataclass(frozen=True)
class ServeOptions:
    """How a service is run.

    Attributes:
        policy: of handshakes, and what becomes of who does not pass.
        limits: on sizes, rates and connections.
        keys: ask for API keys: always, never, or (auto) when there are any; with auto, strangers are never let in without.
        drain: seconds between being told to stop (readiness says no) and stopping.
        log_requests: one JSON line a request on stderr.
        secret: signs tokens; the same for all instances of one service. By default new at each start.
        storage: how pgvector's indexes keep vectors; None leaves them as they are.
    """

    policy: HandshakePolicy = field(default_factory=HandshakePolicy)
    limits: Limits = field(default_factory=Limits)
    keys: Literal["auto", "on", "off"] = "auto"
    drain: float = 0.0
    log_requests: bool = False
    secret: bytes | None = None
    storage: str | None = None


def serve_options(
    *,
    keys: str = "auto",
    unverified: str = "refuse",
    drifting: str = "warn",
    rate: float = 0.0,
    max_body: int = 24,
    connections: int = 2048,
    drain: float = 0.0,
    log_requests: bool = False,
    secret_file: Path | None = None,
    storage: str | None = None,
) -> ServeOptions:
    """Options from the words of the command line; ``max_body`` is in MiB.

    Raises:
        ConfigError: a word that is none, or a secret that cannot be read or is too short.
    """
    policy = HandshakePolicy(
        unverified=_word("--unverified", unverified, get_args(Policy)), drifting=_word("--drifting", drifting, get_args(Policy))
    )
    body = max_body << 20
    limits = Limits(body=body, large_body=max(body, Limits.large_body), connections=connections, rate=rate)
    secret = None
    if secret_file is not None:
        try:
            secret = secret_file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"--secret-file {secret_file}: cannot be read ({error.strerror})") from None
        if len(secret) < _SECRET:
            raise ConfigError(f"--secret-file {secret_file}: {len(secret)} bytes can be guessed; write {_SECRET} random ones")
    return ServeOptions(
        policy=policy,
        limits=limits,
        keys=_word("--keys", keys, get_args(Keys)),
        drain=drain,
        log_requests=log_requests,
        secret=secret,
        storage=storage,
    )


@contextmanager
def request_log(wanted: bool) -> Iterator[None]:
    """One JSON line on stderr for each request of the block, if wanted."""
    log, handler = logging.getLogger("samespace.gallery.requests"), logging.StreamHandler()
    if not wanted:
        yield
        return
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = True


def _word(option: str, word: str, words: tuple[_Word, ...]) -> _Word:
    found = next((known for known in words if known == word), None)
    if found is None:
        raise ConfigError(f"{option} {word}: choose one of {', '.join(words)}")
    return found
