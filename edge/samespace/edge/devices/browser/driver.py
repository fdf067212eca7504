"""The program that drives the browser: a :class:`samespace.edge.devices.served.ServedDevice` asks it as it asks a worker.

It opens the bundle and verifies it, starts the browser, and hands the page what it asks for: the artifact's bytes and the
encoded images. Decoding, preprocessing and inference are the page's (``page/run.js``). Each artifact gets a page of its own in
the one browser: WebAssembly's memory never shrinks, and one artifact leaves nothing for the next.

The browser ends with this process, however it ends: it holds a pipe to Playwright, and that one to this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samespace.edge.devices.browser.server import PageServer
from samespace.sdk.bundle import Bundle
from samespace.sdk.errors import ConfigError, SamespaceError
from samespace.sdk.identity import digest
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.runtimes.child_frames import serve
from samespace.sdk.signing import TrustStore

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright

__all__ = ["Driver"]

_PAGE = Path(__file__).with_name("page")
_FLAGS = (
    # Neither updates nor reports nor names looked up: a device that is checked is alone with its page.
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--disable-sync",
        "--disable-breakpad",
    ),
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    # Containers have a small /dev/shm.
    "--disable-dev-shm-usage",
)
_START_MS = 60_000
#: Characters; a socket's address has 107, and Chromium adds a folder and a name.
_LONGEST_TMPDIR = 60
_SANDBOX = ("No usable sandbox", "setuid sandbox", "Running as root without --no-sandbox")

_Answer = tuple[dict[str, Any], list[bytes]]


class Driver:
    """One browser, started with the first question.

    Args:
        settings: ``chromium`` (executable), ``packages`` (folder), ``accelerator`` (``wasm`` or ``webgpu``), ``flags``.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._server = PageServer({"page": _PAGE, "packages": Path(settings["packages"])})
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None
        self._sandboxed = False
        self._opened: dict[str, Bundle] = {}

    def answer(self, question: Any, parts: Sequence[bytes]) -> _Answer:
        """Say who is here, embed, or end the browser."""
        try:
            return {"hello": self._hello, "embed": self._embed, "bye": self._bye}[question["do"]](question, parts)
        except SamespaceError as error:
            return {"config": str(error)}, []

    def _hello(self, question: Any, parts: Sequence[bytes]) -> _Answer:
        with self._page() as page:
            found = page.evaluate("accelerator => samespace.hello(accelerator)", self._settings["accelerator"])
        versions = _versions(Path(self._settings["packages"]), self._settings["accelerator"])
        told = {name: str(value) for name, value in found.items()}
        assert self._browser is not None
        host = {
            "system": f"{platform.system()} {platform.release()}",
            "machine": platform.machine(),
            "cores": str(os.cpu_count()),
            "browser": f"Chromium {self._browser.version}",
            "sandbox": "on" if self._sandboxed else "off",
            **told,
        }
        return {"host": host, "versions": versions}, []

    def _embed(self, question: Mapping[str, Any], images: Sequence[bytes]) -> _Answer:
        bundle = self._open(question["bundle"], question["manifest_sha256"])
        artifact = bundle.artifact(question["artifact"])
        model = bundle.manifest.model
        size, dim, n = model.preprocess.size, model.dim, len(images)
        self._server.job(_bytes(artifact), images, {"tensors": n * size * size * 3, "embeddings": n * dim * 4})
        job = {
            "format": artifact.spec.format,
            "path": artifact.spec.path,
            "precision": artifact.spec.precision,
            "input": artifact.spec.input.model_dump(mode="json"),
            "output": artifact.spec.output,
            "preprocess": model.preprocess.model_dump(mode="json"),
            "dim": dim,
            "images": n,
            "accelerator": self._settings["accelerator"],
            "threads": question["options"]["threads"],
            "optimise": question["options"]["optimise"],
        }
        try:
            with self._page() as page:
                said = page.evaluate("job => samespace.embed(job)", job)
        except ConfigError:
            raise
        except Exception as error:
            self._bye({}, [])  # a tab that crashed, or a browser: the next artifact gets a new one
            said = {"refused": f"{artifact.spec.path}: the page crashed ({_line(error)})"}
        if "config" in said:
            return {"config": said["config"]}, []
        found: dict[str, Any] = {"tensors": None, "embeddings": None, "refused": said["refused"]}
        told = []
        for name, shape in (("tensors", (n, size, size, 3)), ("embeddings", (n, dim))):
            if len(data := self._server.received.get(name, b"")) == self._server.wanted[name]:
                found[name] = shape
                told.append(data)
        if found["embeddings"] is None and not found["refused"]:
            found["refused"] = f"{artifact.spec.path}: the page gave no embeddings"
        return found, told

    def _bye(self, question: Any, parts: Sequence[bytes]) -> _Answer:
        browser, self._browser = self._browser, None
        if browser is not None:
            with contextlib.suppress(Exception):
                browser.close()
        return {}, []

    @contextlib.contextmanager
    def _page(self) -> Any:
        """A new page of ours, ready; closed afterwards."""
        browser = self._started()
        context = browser.new_context(accept_downloads=False, service_workers="block")
        try:
            page: Page = context.new_page()
            page.set_default_timeout(_START_MS)
            page.goto(self._server.address)
            page.wait_for_function("() => globalThis.samespace !== undefined")
            yield page
        finally:
            with contextlib.suppress(Exception):
                context.close()

    def _started(self) -> Browser:
        if self._browser is not None and self._browser.is_connected():
            return self._browser
        from playwright.sync_api import Error, sync_playwright

        if self._playwright is None:
            self._playwright = sync_playwright().start()
        # Chromium's sandbox does not work for root, nor in most containers.
        for sandboxed in (True, False) if os.geteuid() else (False,):
            try:
                self._browser = self._playwright.chromium.launch(
                    executable_path=self._settings["chromium"],
                    headless=True,
                    chromium_sandbox=sandboxed,
                    args=[*_FLAGS, *self._settings["flags"]],
                    env={**os.environ, "TMPDIR": _short(tempfile.gettempdir())},
                    timeout=_START_MS,
                )
            except Error as error:
                if sandboxed and any(text in error.message for text in _SANDBOX):
                    continue
                raise RuntimeError(f"{self._settings['chromium']} does not start: {_line(error)}") from None
            self._sandboxed = sandboxed
            return self._browser
        raise AssertionError("unreachable")

    def _open(self, path: str, manifest_sha256: str) -> Bundle:
        """The bundle at ``path``, if it is the one whose manifest has that hash: whom the user trusts was settled elsewhere."""
        key = f"{manifest_sha256} {path}"
        if key not in self._opened:
            self._opened.clear()
            with tempfile.TemporaryDirectory() as nobody:
                bundle = Bundle.open(path, trust=TrustStore(Path(nobody)), allow_unsigned=True)
            if digest(bundle.seal.manifest) != manifest_sha256:
                raise ConfigError(
                    f"{path}: the device finds another bundle there than the check opened; was it replaced meanwhile?"
                )
            self._opened[key] = bundle
        return self._opened[key]


def _bytes(artifact: LoadedArtifact) -> bytes:
    if list(artifact.files) != [""]:
        raise ConfigError(f"{artifact.spec.path}: a browser runs artifacts of one file (ONNX, ORT, TFLite)")
    return artifact.single_file


def _versions(packages: Path, accelerator: str) -> dict[str, str]:
    """Name of a runtime -> what it is here."""
    found = {}
    for names, package in ((("onnx", "ort"), "onnxruntime-web"), (("tflite",), "@litertjs/core")):
        number = json.loads((packages / package / "package.json").read_bytes())["version"]
        found |= dict.fromkeys(names, f"{package} {number} ({accelerator})")
    return found


def _short(folder: str) -> str:
    """Another name of the temporary folder, if that one is too long for the sockets that Chromium makes in it."""
    own = f"/proc/{os.getpid()}/cwd"
    return own if len(folder) > _LONGEST_TMPDIR and os.path.exists(own) and os.path.samefile(own, folder) else folder


def _line(error: BaseException) -> str:
    """What is wrong, in one line: where Chromium left a log, its last words."""
    text = str(error)
    fatal = [line for line in text.splitlines() if ":FATAL:" in line]
    return " ".join((fatal[0] if fatal else text).split())[:400]


def _end_with_parent() -> None:
    """End when the check has ended, even while the page computes: nobody is left to answer."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    _end_with_parent()
    serve(Driver(json.loads(sys.argv[1])).answer)
