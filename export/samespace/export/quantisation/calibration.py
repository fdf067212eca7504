"""Which pictures give the ranges of int8, and which judge what came of it.

Ranges come from few pictures, so they should be unlike each other: they are taken farthest first in the cloud model's space
(Gonzalez 1985), which is the space that the result has to be right in. The same pictures are taken in every run of an export,
and the artifact's recipe names them. All others judge (:mod:`.judge`). Probes are never among either: they judge the bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from samespace.export.quantisation.judge import HeldOut
from samespace.export.run import Run, RunModel
from samespace.export.torch_runtime import embed
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import digest
from samespace.sdk.manifest import Format, Precision
from samespace.sdk.prefix import first_coordinates
from samespace.sdk.preprocess import ImageSource, Preprocess

__all__ = ["CalibrationSet", "Pictures", "calibration_pictures", "needs_calibration", "spread"]

_T = TypeVar("_T")

#: Pictures that give the ranges; never more than half of those there are.
COUNT = 64
#: Fewer pictures than this cannot do both, give ranges and judge.
LEAST = 32
#: Pictures that are taken from a folder, at most.
MOST = 256
_EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".heic", ".heif", ".jp2"}


def needs_calibration(format: Format | str, precision: Precision) -> bool:
    """Whether pictures must give ranges: where activations are int8. Core ML's int8 is weights only."""
    return precision == "int8" and format != "coreml"


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """One model's calibration.

    Attributes:
        tensors: ``(n, size, size, 3)`` uint8, the pictures that give the ranges; the first ones differ most.
        held_out: the others.
        about: for the recipe: ``n``, ``sha256`` of the tensors, ``chosen``, ``source`` and ``held_out``, how many judge.
    """

    tensors: npt.NDArray[np.uint8]
    held_out: HeldOut
    about: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures for quantisation, as a run or a folder has them.

    Attributes:
        sources: n pictures.
        cloud: ``(n, dim)`` float32 unit-norm, the cloud model's embeddings.
        labels: n of them, or None.
        origin: in words.
    """

    sources: tuple[ImageSource, ...]
    cloud: npt.NDArray[np.float32]
    labels: tuple[str, ...] | None
    origin: str

    def of(self, model: RunModel) -> CalibrationSet:
        """Divide them, prepared as the model's devices do."""
        record = model.record
        tensors = record.preprocess.batch(self.sources)
        chosen = spread(self.cloud, min(COUNT, len(tensors) // 2))
        judging = np.setdiff1d(np.arange(len(tensors)), chosen)
        codes = None
        if self.labels is not None:
            codes = np.unique(np.asarray(self.labels), return_inverse=True)[1].reshape(-1).astype(np.int64)
        held_out = HeldOut(
            tensors=tensors[judging],
            reference=embed(model.build(), record, tensors[judging]),
            gallery=first_coordinates(self.cloud, record.dim),
            own=judging,
            labels=codes,
        )
        about = {
            "n": len(chosen),
            "sha256": digest(np.ascontiguousarray(tensors[chosen]).tobytes()),
            "chosen": "farthest first in the cloud model's space",
            "source": self.origin,
            "held_out": len(judging),
        }
        return CalibrationSet(np.ascontiguousarray(tensors[chosen]), held_out, about)


def calibration_pictures(run: Run, folder: Path | None = None) -> Pictures:
    """The run's calibration pictures, or those of a folder.

    Args:
        run: a run directory.
        folder: of typical pictures, at any depth; what lies in one folder below it has one label. At most 256 are taken,
            evenly over the sorted paths, of labelled ones two of a label. Pictures that are probes of the run are left out.

    Raises:
        ConfigError: the run has none and no folder is given, or the folder is missing or holds too few pictures.
        ImageError: a picture cannot be decoded.
    """
    if folder is not None:
        return _of_folder(run, folder)
    there = run.calibration
    if there is None:
        raise ConfigError(
            f"{run.path}: has no calibration pictures (its training was older than they are), and int8 needs some: name a "
            "folder of typical pictures with --calibration, train again, or leave int8 out"
        )
    sources = tuple(Image.fromarray(picture) for picture in there.pictures)
    _enough(len(sources), str(run.path / "calibration"))
    return Pictures(sources, there.cloud, there.labels or None, f"{len(sources)} training pictures of the run")


def spread(rows: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Positions of ``count`` rows that lie far from each other: farthest first, from the row nearest to the mean on.

    Args:
        rows: ``(n, d)`` unit-norm.
        count: how many, 1 <= count <= n.

    Returns:
        ``(count,)``, in the order they were taken: any first few of them are spread, too. Of equal rows the first is taken.
    """
    first = int((rows @ rows.mean(axis=0)).argmax())
    taken, nearest = [first], rows @ rows[first]
    while len(taken) < count:
        # What was taken is as near to itself as can be, and equal rows must not hide it.
        nearest[taken[-1]] = np.inf
        taken.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, rows @ rows[taken[-1]])
    return np.array(taken, np.int64)


def _of_folder(run: Run, folder: Path) -> Pictures:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of calibration pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _EXTENSIONS and path.is_file())
    cloud = run.cloud
    probes = {_key(cloud.record.preprocess, image) for image in run.probe_images}
    paths = [path for path in _some(paths, folder) if _key(cloud.record.preprocess, path) not in probes]
    _enough(len(paths), str(folder))
    return Pictures(
        tuple(paths),
        embed(cloud.build(), cloud.record, cloud.record.preprocess.batch(paths)),
        _labels(paths, folder),
        f"{len(paths)} pictures of a folder",
    )


def _some(paths: list[Path], folder: Path) -> list[Path]:
    """At most :data:`MOST`, evenly: of labelled ones by twos of a label, since a picture alone has nothing to find."""
    if len(paths) <= MOST:
        return paths
    members: dict[str, list[Path]] = {}
    for path, label in zip(paths, _labels(paths, folder) or (), strict=False):
        members.setdefault(label, []).append(path)
    pairs = [both[:2] for both in members.values() if len(both) > 1]
    if len(pairs) >= LEAST:
        return [path for pair in _evenly(pairs, MOST // 2) for path in pair]
    return _evenly(paths, MOST)


def _evenly(items: list[_T], most: int) -> list[_T]:
    return [items[index] for index in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def _key(preprocess: Preprocess, source: ImageSource) -> bytes:
    return preprocess(source).tobytes()


def _labels(paths: Sequence[Path], folder: Path) -> tuple[str, ...] | None:
    """Names of the folders directly below; None unless every picture lies in one, and some share theirs."""
    steps = [path.relative_to(folder).parts for path in paths]
    labels = tuple(parts[0] for parts in steps)
    return labels if min(len(parts) for parts in steps) > 1 and max(Counter(labels).values()) > 1 else None


def _enough(count: int, where: str) -> None:
    if count < LEAST:
        raise ConfigError(
            f"{where}: {count} pictures that can calibrate int8 (probes do not count), and {LEAST} are the least, 128 and more "
            "are good: half of them, at most 64, give the ranges, the others judge; add pictures like those the app will see"
        )
