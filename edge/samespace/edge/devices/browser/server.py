"""Serving the page, its packages and one job at a time to the browser, on this machine only and behind a secret path."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["PageServer"]

_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}
_HEADERS = {
    # Isolated from other origins: without, a page has neither threads nor exact clocks.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    # Nothing from elsewhere and nothing to elsewhere. The runtimes compile WebAssembly and start workers from blobs.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; "
        "connect-src 'self' blob: data:; img-src blob:; base-uri 'none'; form-action 'none'"
    ),
}
_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>samespace device</title>
<script type="importmap" nonce="{nonce}">
{{"imports": {{"@litertjs/core": "./packages/@litertjs/core/dist/index.js",
 "@litertjs/wasm-utils": "./packages/@litertjs/wasm-utils/dist/index.js"}}}}
</script>
<body><script type="module" src="page/run.js"></script></body>
"""


class PageServer:
    """Serves until it is closed.

    Args:
        folders: name in the address -> folder whose files are served.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = {name: folder.resolve() for name, folder in folders.items()}
        self.secret = secrets.token_urlsafe(24)
        self.nonce = secrets.token_urlsafe(16)
        #: What the page may read in this job, and how many bytes it may send back under which name.
        self.given: Mapping[str, bytes] = {}
        self.wanted: Mapping[str, int] = {}
        self.received: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{self.secret}/"

    def job(self, artifact: bytes, images: Sequence[bytes], wanted: Mapping[str, int]) -> None:
        """What the page gets next, and the bytes that it may send back at most."""
        self.given = {"artifact": artifact, **{f"image/{i}": image for i, image in enumerate(images)}}
        self.wanted, self.received = wanted, {}

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _handler(pages: PageServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """One request."""

        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_GET(self) -> None:
            found = _find(pages, self.path)
            if found is None:
                self._answer(404, b"", "text/plain")
            else:
                self._answer(200, *found)

        def do_POST(self) -> None:
            _, secret, kind, name = [*self.path.split("/", 3), "", "", ""][:4]
            length = int(self.headers.get("Content-Length", -1))
            if secret != pages.secret or kind != "job" or not 0 <= length <= pages.wanted.get(name, -1):
                self.close_connection = True
                self._answer(413, b"", "text/plain")
                return
            pages.received[name] = self.rfile.read(length)
            self._answer(204, b"", "text/plain")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value.format(nonce=pages.nonce))
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler


def _find(pages: PageServer, path: str) -> tuple[bytes, str] | None:
    """Bytes and type of what lies at a path; None where nothing does."""
    _, secret, kind, name = [*path.partition("?")[0].split("/", 3), "", "", ""][:4]
    if secret != pages.secret:
        return None
    if kind == "":
        return _PAGE.format(nonce=pages.nonce).encode(), "text/html; charset=utf-8"
    if kind == "job":
        return (pages.given[name], "application/octet-stream") if name in pages.given else None
    folder = pages.folders.get(kind)
    if folder is None:
        return None
    file = folder.joinpath(name).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        return None
    return file.read_bytes(), _TYPES.get(file.suffix, "application/octet-stream")
