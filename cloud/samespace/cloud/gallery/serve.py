"""Running the service: take the port, open the stores, found the space, answer until told to stop, clean up."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import platformdirs

from samespace.cloud.gallery.browsing import partition_of
from samespace.cloud.gallery.evidence import verified_evidence
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.keys import KeyRing
from samespace.cloud.gallery.membership import Introduction
from samespace.cloud.gallery.recall import measured_beside
from samespace.cloud.gallery.serve_options import ServeOptions, request_log
from samespace.cloud.gallery.stores import open_stores
from samespace.sdk.bundle import Bundle
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import ConfigError, MissingExtraError
from samespace.sdk.gallery.challenges import make_challenges
from samespace.sdk.gallery.client import proof_of
from samespace.sdk.signing import TrustStore

__all__ = ["Address", "found_from_bundle", "serve_gallery"]

#: Seconds that open requests get to end when the service is told to stop.
_GRACE = 10
#: Connections that wait to be accepted; so many, too, are accepted at a time before the limit on them is looked at.
_BACKLOG = 128
#: Only this machine's own processes reach these.
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Address:
    """Where to listen; port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 8765


def found_from_bundle(
    gallery: Gallery,
    bundle: Bundle,
    embedder: Embedder,
    *,
    trust: TrustStore | None = None,
    allow_unsigned: bool = False,
) -> Introduction:
    """Found the space of a cloud bundle in a gallery; nothing changes when it is there already.

    Raises:
        SpaceMismatchError: the bundle's model did not found its space.
        SignatureError: the bundle's signer is not trusted.
    """
    evidence = verified_evidence(proof_of(bundle), trust or TrustStore.default(), allow_unsigned=allow_unsigned)
    if any(summary.space == bundle.manifest.space for summary in gallery.spaces()):
        return gallery.members.introduce(evidence)
    images, embeddings = make_challenges(bundle, embedder)
    return gallery.found(evidence, images, embeddings)


def serve_gallery(
    address: Address,
    *,
    bundle: Path | Sequence[Path] | None,
    data: Path | None,
    database: str | None,
    memory: bool,
    runtime: str | None,
    allow_unsigned: bool,
    index: str | None = None,
    index_url: str = "",
    options: ServeOptions | None = None,
    ready: Callable[[str, str, list[dict[str, str | int]]], None],
) -> None:
    """Serve until SIGINT or SIGTERM; then let open requests end and stop the embedded server.

    Args:
        bundle: the cloud model's, which founds its space; and others, whose devices are then judged by their own embeddings.
        ready: called once with URL, place of the store and spaces, when requests are answered.

    Raises:
        ConfigError: the port is taken, or no sensible place for the store; or strangers could reach a service without keys.
        GalleryError: the store cannot be opened.
    """
    try:
        import uvicorn

        from samespace.cloud.gallery.connections import bounded_protocol
        from samespace.cloud.gallery.service import ServiceSettings, create_app
    except ModuleNotFoundError:
        raise MissingExtraError("gallery", "serving a gallery") from None

    options = options or ServeOptions()
    if data is None and database is None and not memory:
        data = platformdirs.user_data_path("samespace", appauthor=False) / "gallery"
    paths = [bundle] if isinstance(bundle, Path) else list(bundle or ())
    opened = [Bundle.open(path, allow_unsigned=allow_unsigned) for path in paths]
    with (
        _told_to_stop(),
        _listening(address) as listener,
        open_stores(
            data=data, database=database, memory=memory, index=index, index_url=index_url, storage=options.storage
        ) as stores,
        Gallery(stores.registry, stores.index, policy=options.policy, secret=options.secret) as gallery,
        request_log(options.log_requests),
    ):
        keys = _keys(address, options, KeyRing(gallery.shelf))
        _register(gallery, opened, runtime, allow_unsigned)
        due = [partition_of("", s.serving_model_id) for s in gallery.spaces()]
        settings = ServiceSettings(allow_unsigned=allow_unsigned, keys=keys, limits=options.limits)
        app = create_app(gallery, settings)

        class Server(uvicorn.Server):
            _stop_at: float | None = None

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    host, port = listener.getsockname()[:2]
                    spaces: list[dict[str, str | int]] = [
                        {"space_id": s.space.space_id, "name": s.space.name, "items": s.items} for s in gallery.spaces()
                    ]
                    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}", stores.place, spaces)

            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                # First nobody new is sent here (readiness), then nobody new is let in, then those who are inside end.
                if self._stop_at is not None or not options.drain:
                    super().handle_exit(sig, frame)
                    return
                app.state.draining = True
                self._stop_at = time.monotonic() + options.drain

            async def on_tick(self, counter: int) -> bool:
                if self._stop_at is not None and time.monotonic() >= self._stop_at:
                    self.should_exit = True
                return await super().on_tick(counter)

        config = uvicorn.Config(
            app,
            http=bounded_protocol(options.limits),
            ws="none",
            backlog=_BACKLOG,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        try:
            with measured_beside(stores.index, gallery.shelf, due):
                Server(config).run(sockets=[listener])
        finally:
            app.state.drift.close()


def _keys(address: Address, options: ServeOptions, ring: KeyRing) -> KeyRing | None:
    """Whether keys are asked for: where there are any, and wherever strangers could reach the service."""
    if options.keys == "off":
        return None
    if options.keys == "on" or ring.list():
        return ring
    if address.host not in _LOOPBACK:
        raise ConfigError(
            f"--host {address.host} can be reached by others, and there is no API key yet: make one with 'samespace gallery "
            "key create --role admin' (same --data or --database), or let everybody in with --keys off"
        )
    return None


def _register(gallery: Gallery, bundles: Sequence[Bundle], runtime: str | None, allow_unsigned: bool) -> None:
    """Found the spaces of cloud bundles, introduce the others, and make the references that devices are judged by."""
    if len(bundles) > 1:
        bundles = sorted(bundles, key=lambda bundle: bundle.manifest.space.founder_model_id != bundle.manifest.model_id)
    for place, bundle in enumerate(bundles):
        manifest = bundle.manifest
        if place == 0 or manifest.space.founder_model_id == manifest.model_id:
            with Embedder.open(bundle, runtime) as embedder:
                found_from_bundle(gallery, bundle, embedder, allow_unsigned=allow_unsigned)
        else:
            gallery.members.introduce(verified_evidence(proof_of(bundle), TrustStore.default(), allow_unsigned=allow_unsigned))
        # A stranger's artifacts run in a child process only, so its devices are judged by the bundle's evidence.
        if bundle.trusted and bundle.files_below("probes/images"):
            gallery.refer(bundle)


@contextmanager
def _listening(address: Address) -> Iterator[socket.socket]:
    """The port first: it is the cheapest thing that can be wrong."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"--host {address.host}: not an address of this machine ({error.strerror})") from None
    with listener:
        # A port that a stopped service left is free again at once; one that is in use is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(place)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"cannot listen at {address.host}:{address.port} ({error.strerror}); is another gallery running "
                "there? stop it, or choose another --port (0 takes a free one)"
            ) from None
        yield listener


@contextmanager
def _told_to_stop() -> Iterator[None]:
    """Ctrl-C and SIGTERM are the ordinary end of a service: they unwind the stack, so that everything gets closed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signals = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
