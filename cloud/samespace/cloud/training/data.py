"""The pictures of a run: the training set as one uint8 array, and the rest for measuring."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samespace.cloud.data import ImageSet, Split, cached_tensors, make_split, open_dataset
from samespace.cloud.recipe import Recipe
from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.identity import canonical_json, digest
from samespace.sdk.preprocess import Preprocess

__all__ = ["TrainingData", "load_training_data", "training_data"]

#: Training pictures that quantisation is fitted to.
CALIBRATION = 256


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What a run learns from and is measured on.

    Attributes:
        images: the whole set.
        split: which of them are for what.
        classes: names of the training classes; their order is that of the heads' rows.
        pictures: ``(n, s, s, 3)`` uint8 RGB, the training pictures at source size; in memory, or mapped.
        labels: ``(n,)`` int64 indices into ``classes``.
        sha256: changes when any training picture or label changes.
    """

    images: ImageSet
    split: Split
    classes: tuple[str, ...]
    pictures: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    sha256: str

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """``(b, s, s, 3)`` uint8 pictures and ``(b,)`` int64 labels of these training pictures."""
        rows = indices.numpy()
        return torch.from_numpy(self.pictures[rows]).to(device), torch.from_numpy(self.labels[rows]).to(device)

    def prepared(self, indices: Sequence[int], preprocess: Preprocess) -> npt.NDArray[np.uint8]:
        """``(len(indices), size, size, 3)`` uint8: pictures of the set exactly as a device would prepare them."""
        return cached_tensors(self.images, indices, preprocess, show_progress=len(indices) > 5000)

    def shuffled(self, indices: Sequence[int]) -> list[int]:
        """Pictures of the set in an order that depends on their keys alone."""
        return sorted(indices, key=lambda index: hashlib.sha256(self.images.items[index].key.encode()).digest())

    def costs(self, known: Mapping[str, float]) -> Tensor | None:
        """``(n,)`` float32, what a flip of each training picture costs: by its key, else its class, else 1; None for 1 each.

        Raises:
            ConfigError: a name in ``known`` is neither a training class nor the key of a training picture.
        """
        if not known:
            return None
        keys = [self.images.items[index].key for index in self.split.train]
        if wrong := known.keys() - set(keys) - set(self.classes):
            raise ConfigError(f"flips.costs: {min(wrong)!r} is neither a training class nor the key of a training picture")
        values = [known.get(key, known.get(self.classes[label], 1.0)) for key, label in zip(keys, self.labels, strict=True)]
        return torch.tensor(values, dtype=torch.float32)

    def calibration(self) -> list[int]:
        """Training pictures for quantisation: two of each of as many classes as fit, then whatever is left."""
        by_label: dict[str, list[int]] = {}
        for index in self.shuffled(self.split.train):
            by_label.setdefault(self.images.items[index].label, []).append(index)
        # The second of a label is what the first can find.
        pairs = [index for members in sorted(by_label.values(), key=len, reverse=True) for index in members[:2]]
        rest = [index for members in by_label.values() for index in members[2:]]
        return [*pairs, *rest][:CALIBRATION]


def load_training_data(recipe: Recipe) -> TrainingData:
    """Open, split, decode (or map what was decoded before).

    Raises:
        DataError: pictures that cannot be used, or too few of them.
    """
    images = open_dataset(recipe.data)
    return training_data(recipe, images, make_split(recipe.data, images))


def training_data(recipe: Recipe, images: ImageSet, split: Split) -> TrainingData:
    """The same for an image set that is open already.

    Raises:
        DataError: no training class, or a picture that cannot be decoded.
    """
    labels = [images.items[index].label for index in split.train]
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise DataError(f"{images.name}: the training split holds {len(classes)} classes; training needs two at least")
    pictures = cached_tensors(images, split.train, recipe.source_preprocess)
    # A set of a few GB is read into memory: mapped pages are evicted between two epochs. A larger one stays mapped.
    if pictures.nbytes < 4 * 2**30:
        pictures = np.array(pictures)
    number = {label: index for index, label in enumerate(classes)}
    keys = [images.items[index].key for index in split.train]
    return TrainingData(
        images=images,
        split=split,
        classes=classes,
        pictures=pictures,
        labels=np.array([number[label] for label in labels], np.int64),
        sha256=digest(canonical_json([images.fingerprint, keys, labels])),
    )
