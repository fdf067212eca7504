"""Fashion-MNIST, of which a network knows five classes and is to learn the other five; and handwritten digits, which are far.

Fashion-MNIST (Xiao et al., arXiv 1708.07747; MIT) comes as a Debian package, is unpacked into the cache and never committed;
the digits are scikit-learn's.
"""

from __future__ import annotations

import gzip
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samespace.sdk.errors import ConfigError

__all__ = ["Task", "far", "known", "near"]

_PACKAGE = "dataset-fashion-mnist"
#: Classes that networks are trained on before; the other five are learnt from a few images.
_KNOWN = (0, 2, 4, 7, 9)
_NEW = (1, 3, 5, 6, 8)


@dataclass(frozen=True, eq=False)
class Task:
    """Images ``(n, 3, 28, 28)`` in [-1, 1] and classes from 0; ``validation`` chooses settings, ``test`` is looked at last."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def classes(self) -> int:
        return int(self.train[1].max()) + 1

    def few(self, shots: int, seed: int) -> tuple[Tensor, Tensor]:
        """So many training images of each class."""
        chance = torch.Generator().manual_seed(seed)
        images, labels = self.train
        rows = []
        for name in range(self.classes):
            own = (labels == name).nonzero()[:, 0]
            rows.append(own[torch.randperm(len(own), generator=chance)[:shots]])
        chosen = torch.cat(rows)
        return images[chosen], labels[chosen]


def known(folder: Path) -> Task:
    """The classes that the networks are trained on before."""
    return _fashion(folder, _KNOWN)


def near(folder: Path) -> Task:
    """The other five classes of the same pictures."""
    return _fashion(folder, _NEW)


def far() -> Task:
    """Ten handwritten digits, 8 x 8 pixels made larger; 60 a class to learn from, 20 to choose by, the rest to test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images.astype(np.float32))[:, None] / 16
    large = F.pad(F.interpolate(small, size=(20, 20), mode="bilinear"), (4, 4, 4, 4))
    images, labels = (2 * large - 1).repeat(1, 3, 1, 1), torch.from_numpy(digits.target)
    parts: list[list[Tensor]] = [[], [], []]
    for name in range(10):
        own = (labels == name).nonzero()[:, 0]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(name))]
        for part, rows in zip(parts, (own[:60], own[60:80], own[80:]), strict=True):
            part.append(rows)
    return Task(*((images[torch.cat(part)], labels[torch.cat(part)]) for part in parts))


def _fashion(folder: Path, classes: tuple[int, ...]) -> Task:
    root = _unpacked(folder)
    images, labels = _read(root, "train")
    test = _read(root, "t10k")
    held = len(images) - 5000
    return Task(_of(images[:held], labels[:held], classes), _of(images[held:], labels[held:], classes), _of(*test, classes))


def _of(images: np.ndarray, labels: np.ndarray, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    rows = np.isin(labels, classes)
    pixels = torch.from_numpy(images[rows].astype(np.float32))[:, None] / 127.5 - 1
    return pixels.repeat(1, 3, 1, 1), torch.tensor([classes.index(name) for name in labels[rows]])


def _read(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(root / f"{part}-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(root / f"{part}-labels-idx1-ubyte.gz") as file:
        return images, np.frombuffer(file.read(), np.uint8, offset=8)


def _unpacked(folder: Path) -> Path:
    root = folder / "fashion-mnist"
    if not root.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            fetched = subprocess.run(["apt-get", "download", _PACKAGE], cwd=work, capture_output=True, text=True, check=False)
            packages = list(Path(work).glob("*.deb"))
            if not packages:
                raise ConfigError(f"the Debian package {_PACKAGE} cannot be fetched: {fetched.stderr.strip()}")
            subprocess.run(["dpkg", "-x", str(packages[0]), f"{work}/all"], check=True)
            (Path(work) / "all/usr/share/datasets/fashion-mnist").rename(root)
    return root
