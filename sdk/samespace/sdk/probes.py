"""The probes of a bundle: real images, and what the model must make of them. This module owns their format, both ways.

probes/images/000.png ...      as an app would get them: encoded, at source resolution
probes/golden.safetensors      "tensors" (n, s, s, 3) uint8: what Preprocess must give for each image
probes/reference.safetensors   "model" (n, d) float32: this model's own fp32 output; "cloud" (n, d): the cloud model's
probes/mistakes.safetensors    (m, d) float16 or float32 each, of the first m <= n probes: what a known mistake would give, e.g.
                               "bgr", "filter_nearest@floor" (a variant), "bgr+no_mean_std" (both); need not be unit-norm
probes/gallery.safetensors     "embeddings" (m, d) float32: a sample of the cloud model's gallery
probes/labels.json             {"probes": [n labels] or null, "gallery": [m labels] or null}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from samespace.sdk.errors import BundleError, SamespaceError
from samespace.sdk.identity import canonical_json
from samespace.sdk.metrics.arrays import checked_embeddings

if TYPE_CHECKING:
    from samespace.sdk.bundle import Bundle

__all__ = ["PROBES_FOLDER", "ProbeSet"]

PROBES_FOLDER = "probes/"
_IMAGES, _GOLDEN, _REFERENCE = "probes/images/", "probes/golden.safetensors", "probes/reference.safetensors"
_MISTAKES, _GALLERY, _LABELS = "probes/mistakes.safetensors", "probes/gallery.safetensors", "probes/labels.json"

#: First bytes of an encoded image -> its file ending. Only these two are written: every platform decodes them alike.
_ENDINGS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Probe images with their references; checked when made, so that a wrong set is never written nor used.

    Attributes:
        images: n encoded images (PNG or JPEG).
        golden: ``(n, s, s, 3)`` uint8, the preprocessed images.
        reference: ``(n, d)`` float32 unit-norm, this model's fp32 embeddings, by the framework it was trained in.
        cloud: ``(n, d)`` float32 unit-norm, the cloud model's embeddings of the same images.
        gallery: ``(m, d)`` float32 unit-norm, gallery items that the cloud model embedded.
        mistakes: name of a known mistake -> ``(m, d)`` float16 or float32, what it would give for the first m <= n probes.
        probe_labels: n labels, or None.
        gallery_labels: m labels, or None.

    Raises:
        BundleError: arrays, images or labels that do not fit together; names the file.
    """

    images: tuple[bytes, ...]
    golden: npt.NDArray[np.uint8]
    reference: npt.NDArray[np.float32]
    cloud: npt.NDArray[np.float32]
    gallery: npt.NDArray[np.float32]
    mistakes: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    probe_labels: tuple[str, ...] | None = None
    gallery_labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if not n:
            raise BundleError(f"{_IMAGES} holds no image; export the bundle again with probes")
        for index, image in enumerate(self.images):
            _ending(image, index)
        if self.golden.dtype != np.uint8 or self.golden.ndim != 4 or self.golden.shape[0] != n or self.golden.shape[3] != 3:
            raise BundleError(
                f"{_GOLDEN}: expected ({n}, s, s, 3) uint8 for {n} images, got {self.golden.dtype} {self.golden.shape}"
            )
        dim = self.reference.shape[-1]
        for file, name, rows, count in (
            (_REFERENCE, "model", self.reference, n),
            (_REFERENCE, "cloud", self.cloud, n),
            (_GALLERY, "embeddings", self.gallery, len(self.gallery)),
        ):
            _expect(file, name, rows, count, dim)
            try:
                checked_embeddings(name, rows)
            except SamespaceError as error:
                raise BundleError(f"{file}: {error}") from None
        for name, rows in self.mistakes.items():
            # Fewer rows and half precision keep dozens of them small.
            wide = rows.astype(np.float32) if rows.dtype == np.float16 else rows
            _expect(_MISTAKES, name, wide, min(n, max(1, len(rows))) if rows.ndim else n, dim)
        for name, labels, count in (("probes", self.probe_labels, n), ("gallery", self.gallery_labels, len(self.gallery))):
            if labels is not None and len(labels) != count:
                raise BundleError(f"{_LABELS}: {len(labels)} labels for {name!r}, which has {count} rows")

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> ProbeSet:
        """The probes of an opened :class:`~samespace.sdk.bundle.Bundle`.

        Raises:
            BundleError: there are none, they cannot be read, or they are of another size or dimension than the model.
        """
        probes = cls.from_files(bundle.files_below(PROBES_FOLDER))
        size, dim = bundle.manifest.model.preprocess.size, bundle.manifest.model.dim
        if probes.golden.shape[1:3] != (size, size):
            raise BundleError(
                f"{_GOLDEN}: tensors of {probes.golden.shape[1:3]} pixels, the model's preprocessing gives {(size, size)}"
            )
        if probes.reference.shape[1] != dim:
            raise BundleError(f"{_REFERENCE}: embeddings of {probes.reference.shape[1]} dimensions, the model has {dim}")
        return probes

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> ProbeSet:
        """The reverse of :meth:`to_files`.

        Raises:
            BundleError: a file is missing or cannot be read.
        """
        reference, gallery = _tensors(files, _REFERENCE), _tensors(files, _GALLERY)
        labels = _read_labels(files)
        return cls(
            images=tuple(files[path] for path in sorted(files) if path.startswith(_IMAGES)),
            golden=_tensor(_tensors(files, _GOLDEN), _GOLDEN, "tensors"),
            reference=_tensor(reference, _REFERENCE, "model"),
            cloud=_tensor(reference, _REFERENCE, "cloud"),
            gallery=_tensor(gallery, _GALLERY, "embeddings"),
            mistakes=_tensors(files, _MISTAKES),
            probe_labels=labels["probes"],
            gallery_labels=labels["gallery"],
        )

    def to_files(self) -> dict[str, bytes]:
        """Path in the bundle -> bytes; the same bytes for the same probes."""
        digits = max(3, len(str(len(self.images) - 1)))
        files = {f"{_IMAGES}{index:0{digits}d}.{_ending(image, index)}": image for index, image in enumerate(self.images)}
        files[_GOLDEN] = _save({"tensors": self.golden})
        files[_REFERENCE] = _save({"model": self.reference, "cloud": self.cloud})
        files[_MISTAKES] = _save(self.mistakes)
        files[_GALLERY] = _save({"embeddings": self.gallery})
        files[_LABELS] = canonical_json({"probes": self.probe_labels, "gallery": self.gallery_labels})
        return files


def _ending(image: bytes, index: int) -> str:
    for start, ending in _ENDINGS.items():
        if image.startswith(start):
            return ending
    raise BundleError(f"{_IMAGES}: probe image {index} is neither PNG nor JPEG; save it as PNG")


def _expect(file: str, name: str, rows: npt.NDArray[Any], count: int, dim: int) -> None:
    if rows.dtype != np.float32 or rows.shape != (count, dim):
        raise BundleError(f"{file}: {name!r} must be ({count}, {dim}) float32, got {rows.dtype} {rows.shape}")
    if not np.isfinite(rows).all():
        raise BundleError(f"{file}: {name!r} holds NaN or infinite values")


def _save(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    return save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})


def _tensors(files: Mapping[str, bytes], path: str) -> dict[str, npt.NDArray[Any]]:
    if path not in files:
        raise BundleError(f"the bundle has no {path}, so it cannot be checked; export it again with probes")
    try:
        return load(files[path])
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: not a safetensors file that can be read ({error})") from None


def _tensor(arrays: Mapping[str, npt.NDArray[Any]], path: str, name: str) -> npt.NDArray[Any]:
    if name not in arrays:
        raise BundleError(f"{path}: no tensor {name!r} in it; it has {sorted(arrays)}")
    return arrays[name]


def _read_labels(files: Mapping[str, bytes]) -> dict[str, tuple[str, ...] | None]:
    try:
        content = json.loads(files[_LABELS]) if _LABELS in files else {}
        labels = {name: content.get(name) for name in ("probes", "gallery")}
        for value in labels.values():
            if value is not None and not (isinstance(value, list) and all(isinstance(label, str) for label in value)):
                raise ValueError("labels are lists of strings")
        return {name: None if value is None else tuple(value) for name, value in labels.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f'{_LABELS}: expected {{"probes": [...], "gallery": [...]}} with strings or null ({error})') from None
