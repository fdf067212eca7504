"""The program that runs on a device: the whole path of a check, from encoded images to embeddings, over there.

It is one file that is put beside samespace.sdk on the device and started as a script there; it imports samespace.sdk and
nothing else of ours. By :mod:`samespace.sdk.runtimes.child_frames` it serves two questions of
:class:`samespace.edge.devices.served.ServedDevice`:

- ``{"do": "hello"}``, answered ``{"host": {NAME: TEXT}, "versions": {RUNTIME: TEXT}}``;
- ``{"do": "embed", "bundle", "manifest_sha256", "artifact", "runtime", "options"}`` with the encoded images, answered
  ``{"tensors": SHAPE or null, "embeddings": SHAPE or null, "refused": TEXT}`` with the uint8 tensors and the embeddings (little
  endian float32), or ``{"config": TEXT}`` when that cannot be asked of this device at all. ``peak_kb`` beside them is
the most memory that this process had meanwhile, where the system knows it.

It opens the bundle itself, and refuses another one than the check opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import resource
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
from PIL import Image

from samespace.sdk.bundle import Bundle
from samespace.sdk.devices import describe_host
from samespace.sdk.errors import ConfigError, ImageError, RuntimeFailure, SamespaceError
from samespace.sdk.identity import digest
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.child_frames import serve
from samespace.sdk.runtimes.registry import RUNTIMES, runtime_class
from samespace.sdk.runtimes.tflite import TfliteRuntime
from samespace.sdk.signing import TrustStore


class _OldTflite(TfliteRuntime):
    """tflite-runtime in this very process: a device has no second Python, and this process is already one that may crash."""

    name: ClassVar[str] = "tflite_runtime"
    packages: ClassVar[tuple[str, ...]] = ("tflite-runtime",)
    interpreters: ClassVar[tuple[str, ...]] = ("tflite_runtime.interpreter",)


#: What the dynamic linker and the system say when there is no memory left.
_NO_MEMORY = ("Cannot allocate memory", "failed to map segment", "cannot create shared object descriptor")

_opened: dict[str, Bundle] = {}
#: Hash of the last images and their preprocessing -> their tensors: one check asks for the same images of every artifact.
_prepared: dict[str, np.ndarray[Any, np.dtype[np.uint8]]] = {}


def answer(question: Any, parts: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """Say who is here, or embed."""
    if question["do"] == "hello":
        return _hello(), []
    try:
        _forget_peak()
        told, found = _embed(question, parts)
        return {**told, "peak_kb": _peak()}, found
    except (RuntimeFailure, ImageError) as error:
        return {"tensors": None, "embeddings": None, "refused": str(error)}, []
    except SamespaceError as error:
        return {"config": str(error)}, []


def _embed(question: Mapping[str, Any], images: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    found: dict[str, Any] = {"tensors": None, "embeddings": None, "refused": ""}
    told: list[bytes] = []
    try:
        bundle = _open(question["bundle"], question["manifest_sha256"])
        tensors = _tensors(bundle, images)
        found, told = {**found, "tensors": tensors.shape}, [tensors.tobytes()]
        options = RuntimeOptions(**{**question["options"], "providers": tuple(question["options"]["providers"])})
        with _runtime(bundle.artifact(question["artifact"]), question["runtime"], options) as runtime:
            # As the artifact gives them: the check judges them.
            embeddings = runtime.run(tensors)
    except RuntimeFailure as error:
        return {**found, "refused": str(error)}, told
    except (MemoryError, ImportError, OSError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _NO_MEMORY):
            raise
        return {**found, "refused": f"{question['artifact']}: out of memory on the device ({error or 'MemoryError'})"}, told
    return {**found, "embeddings": embeddings.shape}, [*told, np.ascontiguousarray(embeddings, "<f4").tobytes()]


def _forget_peak() -> None:
    """Have the kernel count anew; where it cannot, the peak is that of the whole life of this process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """Most memory since then in KiB (VmHWM): in user-mode emulation the emulator's is in it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), None)


def _open(path: str, manifest_sha256: str) -> Bundle:
    """The bundle at ``path``, verified here too, if it is the one whose manifest has that hash."""
    key = f"{manifest_sha256} {path}"
    if key not in _opened:
        _opened.clear()
        # Whom the user trusts was settled where the check runs: the hash of the manifest says that this is that bundle.
        with tempfile.TemporaryDirectory() as nobody:
            bundle = Bundle.open(path, trust=TrustStore(Path(nobody)), allow_unsigned=True)
        if digest(bundle.seal.manifest) != manifest_sha256:
            raise ConfigError(
                f"{path}: the device finds another bundle there than the check opened; was it replaced meanwhile?"
            )
        _opened[key] = bundle
    return _opened[key]


def _tensors(bundle: Bundle, images: Sequence[bytes]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    preprocess = bundle.manifest.model.preprocess
    hasher = hashlib.sha256(preprocess.model_dump_json().encode())
    for image in images:
        hasher.update(len(image).to_bytes(8, "big") + image)
    if hasher.hexdigest() not in _prepared:
        _prepared.clear()
        _prepared[hasher.hexdigest()] = preprocess.batch(images)
    return _prepared[hasher.hexdigest()]


def _runtime(artifact: LoadedArtifact, name: str, options: RuntimeOptions) -> Runtime:
    kind = _kind(name)
    if kind.format != artifact.spec.format:
        raise ConfigError(f"runtime {name!r} runs {kind.format} artifacts; {artifact.spec.path} is {artifact.spec.format}")
    if missing := kind.unavailable():
        raise ConfigError(f"runtime {name!r} is not on this device: {missing}")
    return kind(artifact, options)


def _kind(name: str) -> type[Runtime]:
    return _OldTflite if name == _OldTflite.name else runtime_class(name)


def _hello() -> dict[str, Any]:
    versions = {name: _kind(name).version() for name in RUNTIMES if not _kind(name).unavailable()}
    host = {**describe_host(), "libc": " ".join(platform.libc_ver()), "pillow": PIL.__version__}
    return {"host": host, "versions": versions}


def _know_transparency() -> None:
    """Debian's Pillow on 32-bit ARM is older (9.4) than what samespace.sdk asks for (11), and lacks one thing that it uses."""

    def has_transparency_data(image: Image.Image) -> bool:
        """As Pillow 10.1 and later say it."""
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            return True
        return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")

    if not hasattr(Image.Image, "has_transparency_data"):
        setattr(Image.Image, "has_transparency_data", property(has_transparency_data))  # noqa: B010 - not for type checkers


def _end_with_parent() -> None:
    """End when the check has ended, even in the middle of an inference: nobody is left to answer."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    # Before any package is imported: some open sockets when they are.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # A crash is an answer; nobody reads a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.dont_write_bytecode = True
    _know_transparency()
    _end_with_parent()
    serve(answer)
