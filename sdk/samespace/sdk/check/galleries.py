"""Where the gallery that a check searches comes from: the bundle's own sample, or a file of embeddings."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError, SamespaceError, SpaceMismatchError
from samespace.sdk.manifest import Manifest
from samespace.sdk.metrics.arrays import checked_embeddings
from samespace.sdk.prefix import first_coordinates
from samespace.sdk.probes import ProbeSet

__all__ = ["GallerySample"]


@dataclass(frozen=True, eq=False)
class GallerySample:
    """Gallery items that a cloud model embedded.

    Attributes:
        source: where they came from, for the report.
        embeddings: ``(m, d)`` float32 unit-norm.
        labels: m labels, or None.
        model_id: of the model that embedded them, or None when nothing says so.
        location: what ``samespace check --gallery`` takes to find them again; empty for the bundle's own sample.
    """

    source: str
    embeddings: npt.NDArray[np.float32]
    labels: tuple[str, ...] | None = None
    model_id: str | None = None
    location: str = ""

    @classmethod
    def from_probes(cls, probes: ProbeSet, manifest: Manifest) -> GallerySample:
        """The sample in the bundle; the founder of the space embedded it."""
        return cls("the bundle's sample", probes.gallery, probes.gallery_labels, manifest.space.founder_model_id)

    @classmethod
    def from_file(cls, path: Path) -> GallerySample:
        """An ``.npz`` with ``embeddings`` (m, d), and if there are any ``labels`` (m strings) and ``model_id`` (one string).

        Raises:
            ConfigError: no such file, or not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such gallery file") from None
        except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigError(
                f"{path}: not an .npz file that can be read ({error}); write it with "
                "numpy.savez(path, embeddings=..., labels=..., model_id=...)"
            ) from None
        unknown = sorted(set(arrays) - {"embeddings", "labels", "model_id"})
        if unknown or "embeddings" not in arrays:
            raise ConfigError(f"{path}: expected the arrays 'embeddings', 'labels' and 'model_id', got {sorted(arrays)}")
        try:
            embeddings = checked_embeddings("embeddings", arrays["embeddings"])
        except (SamespaceError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: {error}") from None
        labels = None
        if "labels" in arrays:
            if arrays["labels"].shape != (len(embeddings),):
                raise ConfigError(f"{path}: {len(embeddings)} embeddings, but 'labels' has the shape {arrays['labels'].shape}")
            labels = tuple(str(label) for label in arrays["labels"])
        model_id = str(arrays["model_id"]) if "model_id" in arrays else None
        return cls(str(path), embeddings, labels, model_id, location=str(path))

    def comparable(self, manifest: Manifest) -> GallerySample:
        """The gallery as the bundle's model is compared with it: at the model's width.

        A gallery of another space is refused: equal dimension does not make vectors comparable.

        Raises:
            SpaceMismatchError: another dimension, or another model than the founder of the space (or the bundle's own model).
        """
        width = self.embeddings.shape[1]
        if width not in (manifest.space.dim, manifest.model.dim):
            raise SpaceMismatchError(
                f"{self.source}: vectors of {width} dimensions, the space {manifest.space.name!r} has {manifest.space.dim}"
            )
        if self.model_id not in (None, manifest.space.founder_model_id, manifest.model_id):
            raise SpaceMismatchError(
                f"{self.source}: embedded by {self.model_id}, but the space {manifest.space.name!r} was founded by "
                f"{manifest.space.founder_model_id}; use a gallery of that model, or a bundle made for this one"
            )
        return replace(self, embeddings=first_coordinates(self.embeddings, manifest.model.dim))
