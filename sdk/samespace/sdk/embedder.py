"""The Embedder: a bundle, its preprocessing and a runtime. Images in, unit-norm float32 vectors out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from samespace.sdk.bundle import Bundle
from samespace.sdk.device_evidence import device_evidence, device_here, disabled_on
from samespace.sdk.errors import ConfigError, EmbeddingError, ImageError, RuntimeFailure
from samespace.sdk.manifest import Manifest
from samespace.sdk.metrics.arrays import NORM_TOLERANCE
from samespace.sdk.preprocess import ImageSource, Preprocess
from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.registry import open_runtime, runtime_class, runtimes_for, why_unavailable
from samespace.sdk.signing import TrustStore

__all__ = ["Embedder", "unit_norm"]

_log = logging.getLogger(__name__)


class Embedder:
    """Embeds images with one artifact of a bundle. A context manager; may be used by several threads, one at a time runs.

    Make it with :meth:`open`; the constructor puts together what is already open.

    Args:
        manifest: of the bundle that the runtime's artifact is from.
        runtime: an open runtime; the Embedder closes it.
        runtime_name: how messages call the runtime; by default its own name.
    """

    def __init__(self, manifest: Manifest, runtime: Runtime, runtime_name: str | None = None) -> None:
        self._manifest = manifest
        self._runtime = runtime
        self.runtime_name = runtime_name or runtime.name
        self._preprocess: Preprocess = manifest.model.preprocess
        #: The bundle that it was opened from, if it was; a gallery may have to be shown it.
        self.bundle: Bundle | None = None
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        bundle: Bundle | Path | str,
        runtime: str | None = None,
        artifact: str | None = None,
        options: RuntimeOptions | None = None,
        *,
        trust: TrustStore | None = None,
        allow_unsigned: bool = False,
        device: str | None = None,
    ) -> Self:
        """Open a bundle for embedding.

        Args:
            bundle: an opened bundle, or the path of one.
            runtime: name of a runtime; by default the first that this machine has, in the order of the bundle's artifacts.
            artifact: name (``"onnx-fp32"``) or format (``"onnx"``); by default the first that the runtime runs.
            options: threads and batch size.
            trust: whose signatures count; by default this user's trust store. Only for a path.
            allow_unsigned: open a path's bundle although nobody trusted signed it; its artifact then runs in a limited child
                process.
            device: name of the device that this is, as the bundle was checked on it; what is disabled there is not used. None
                takes the environment's ``SAMESPACE_DEVICE``; empty means that nothing is disabled (a check measures it all).

        Raises:
            BundleError: the bundle cannot be opened, or cannot be trusted.
            ConfigError: no such artifact or runtime, or none that works on this machine; or the bundle disables what was asked
                for on this device: says why, and what to use instead.
            RuntimeFailure: the runtime refuses the artifact.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle, trust=trust, allow_unsigned=allow_unsigned)
        loaded, name = _choose(bundle, runtime, artifact, device_here() if device is None else device)
        if bundle.trusted:
            embedder = cls(bundle.manifest, open_runtime(loaded, name, options))
        else:
            # Only a stranger's bundle pays for the child process, and only then is its module needed.
            from samespace.sdk.isolation import IsolatedRuntime

            embedder = cls(bundle.manifest, IsolatedRuntime(loaded, name, options), name)
        embedder.bundle = bundle
        return embedder

    @property
    def model_id(self) -> str:
        """Id of the model; it belongs to every vector that leaves here."""
        return self._manifest.model_id

    @property
    def artifact_id(self) -> str:
        """SHA-256 of the artifact that runs."""
        return self._runtime.artifact.spec.artifact_id

    @property
    def space_id(self) -> str:
        """Id of the space the model embeds into."""
        return self._manifest.space_id

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""
        return self._manifest.model.dim

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._manifest

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are made into tensors."""
        return self._preprocess

    @property
    def runtime(self) -> Runtime:
        """The runtime that runs the artifact."""
        return self._runtime

    def embed(self, images: ImageSource | Iterable[ImageSource]) -> npt.NDArray[np.float32]:
        """Embed one image, or any number of them.

        Args:
            images: a path, encoded bytes, a PIL image or a ``(h, w, 3)`` / ``(h, w)`` uint8 RGB array; or an iterable of
                these (a ``(n, h, w, 3)`` array too), which is read a batch at a time.

        Returns:
            ``(d,)`` float32 of unit norm for one image, ``(n, d)`` for an iterable; n may be 0.

        Raises:
            ImageError: a picture cannot be decoded; names it and its position.
            EmbeddingError: NaN, infinite, zero or not of unit norm; names the position.
            RuntimeFailure: the runtime failed, or the Embedder is closed.
        """
        if isinstance(images, str | Path | bytes | Image.Image):
            return self.embed_tensors(self._preprocess(images)[None])[0]
        if isinstance(images, np.ndarray) and images.ndim < 4:
            return self.embed_tensors(self._preprocess(images)[None])[0]
        parts = [self._run(np.stack(tensors), start) for start, tensors in self._batches(images)]
        if not parts:
            return np.empty((0, self.dim), np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def embed_tensors(self, tensors: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed preprocessed images: ``(n, size, size, 3)`` uint8 RGB to ``(n, d)`` float32 of unit norm.

        Raises:
            EmbeddingError, RuntimeFailure: as :meth:`embed`.
        """
        return self._run(tensors, 0)

    def close(self) -> None:
        """Give back what the runtime holds; the Embedder cannot be used afterwards."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _batches(self, images: Iterable[ImageSource]) -> Iterator[tuple[int, list[npt.NDArray[np.uint8]]]]:
        """Position of the first image, and up to a batch of tensors."""
        remaining, start = enumerate(images), 0
        while chunk := list(islice(remaining, max(1, self._runtime.options.batch_size))):
            yield start, [self._tensor(position, image) for position, image in chunk]
            start += len(chunk)

    def _tensor(self, position: int, image: ImageSource) -> npt.NDArray[np.uint8]:
        try:
            return self._preprocess(image)
        except ImageError as error:
            raise ImageError(f"image {position}: {error}") from error

    def _run(self, tensors: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.float32]:
        spec = self._runtime.artifact.spec
        with self._lock:
            if self._closed:
                raise RuntimeFailure(f"the embedder of {spec.path} is closed; open it again with Embedder.open")
            output = self._runtime.run(tensors)
        return unit_norm(output, f"{spec.path} in {self.runtime_name}", start, self.dim)


def unit_norm(rows: npt.NDArray[np.floating], made_by: str, start: int = 0, dim: int | None = None) -> npt.NDArray[np.float32]:
    """``rows`` divided by their norms, once these are near enough to 1.

    Args:
        rows: ``(n, d)``.
        made_by: whose output it is, for the message.
        start: position of the first row, for the message.
        dim: the dimension there should be.

    Raises:
        EmbeddingError: another dimension; or NaN, infinite values, a zero norm or one further than 0.002 from 1.
    """
    if rows.ndim != 2 or (dim is not None and rows.shape[1] != dim):
        raise EmbeddingError(f"{made_by}: embeddings must have the shape (n, {dim or 'd'}), got {rows.shape}")
    rows = rows.astype(np.float32, copy=False)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    # Written so that NaN counts as wrong; an infinite value has an infinite norm, or NaN.
    wrong = ~(np.abs(norms - 1) <= NORM_TOLERANCE)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise EmbeddingError(
            f"{made_by}: embedding {start + first} {_fault(rows[first], float(norms[first]))} "
            f"({int(wrong.sum())} of {len(rows)} in this batch are unusable)"
        )
    return rows / norms[:, None]


def _fault(row: npt.NDArray[np.float32], norm: float) -> str:
    if np.isnan(row).any():
        return "holds NaN; the artifact or the runtime's kernels are broken here, so export again or use another runtime"
    if np.isinf(row).any() or not np.isfinite(norm):
        return "holds infinite values; the artifact overflows here, so export it in a higher precision"
    if norm == 0:
        return "is all zeros; it has no direction, so it cannot be compared with anything"
    return f"has norm {norm:.4g} instead of 1; the L2 normalisation is missing in the graph, so export it again"


def _choose(bundle: Bundle, runtime: str | None, artifact: str | None, device: str) -> tuple[LoadedArtifact, str]:
    """The artifact to run and the name of the runtime for it, as told or else the first that works here."""
    if runtime is not None and (reason := why_unavailable(runtime)) is not None:
        raise ConfigError(f"runtime {runtime!r} does not work on this machine: {reason}")
    disabled = _disabled(bundle, device)
    candidates = bundle.artifacts if artifact is None else (bundle.artifact(artifact).spec,)
    refused: list[tuple[str, str]] = []
    for spec in candidates:
        for name in runtimes_for(spec.format):
            if runtime in (None, name):
                if (spec.name, name) not in disabled:
                    return bundle.artifact(spec.path), name
                refused.append((spec.name, name))
    if refused:
        raise ConfigError(_why_disabled(bundle, device, disabled, refused))
    have = ", ".join(spec.name for spec in candidates) or "no artifact"
    if runtime is not None:
        raise ConfigError(f"runtime {runtime!r} runs {runtime_class(runtime).format} artifacts; {bundle.path} offers: {have}")
    formats = dict.fromkeys(spec.format for spec in candidates)
    reasons = [why_unavailable(name) for format in formats for name in runtimes_for(format, installed_only=False)]
    raise ConfigError(f"nothing on this machine runs {have} of {bundle.path}: {'; '.join(filter(None, reasons))}")


def _disabled(bundle: Bundle, device: str) -> dict[tuple[str, str], str]:
    """What the bundle's evidence disables on this device; a device that it does not know is worth a warning."""
    if not device:
        return {}
    records = device_evidence(bundle)
    if records and device not in {record.device for record in records}:
        checked = ", ".join(sorted({record.device for record in records}))
        _log.warning("%s: never checked on the device %r, so nothing is disabled; checked on: %s", bundle.path, device, checked)
    return disabled_on(records, device)


def _why_disabled(
    bundle: Bundle, device: str, disabled: Mapping[tuple[str, str], str], refused: Sequence[tuple[str, str]]
) -> str:
    pairs = [(spec.name, name) for spec in bundle.artifacts for name in runtimes_for(spec.format)]
    instead = next((pair for pair in pairs if pair not in disabled), None)
    mend = (
        f"use {instead[0]} in {instead[1]} instead"
        if instead is not None
        else "nothing else in the bundle runs here: export another precision and check it with samespace check --disable"
    )
    reasons = "; ".join(f"{artifact} in {name}: {disabled[artifact, name]}" for artifact, name in refused)
    return f"{bundle.path}: disabled on the device {device!r}: {reasons}; {mend}"
