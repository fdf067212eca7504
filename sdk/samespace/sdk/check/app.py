"""A real app takes part: what it computed for the probe images comes in a file and is judged like any device.

Embeddings, one row a probe image, in one of three formats; all may come in any order if they say which row is which image::

    app.json   {"000.png": [0.013, ...], "001.png": [...], ...}      or, in the order of the images, [[0.013, ...], ...]
    app.csv    000.png,0.013,...                                     a line an image; without names in the order of the images
    app.npz    embeddings (n, d) float, and if there is names (n,)   by numpy.savez

Tensors, what the app fed to the model, before any scaling: ``(n, s, s, 3)`` RGB, 0-255::

    tensors.bin   n * s * s * 3 bytes in the order of the images
    tensors.npz   tensors (n, s, s, 3) uint8 or float, and if there is names (n,)
    tensors.npy   the array alone, in the order of the images
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.sdk.bundle import Bundle
from samespace.sdk.devices import DeviceRun
from samespace.sdk.errors import ConfigError
from samespace.sdk.probes import PROBES_FOLDER
from samespace.sdk.runtimes.base import RuntimeOptions

__all__ = ["APP", "AppDevice", "probe_names"]

#: Name of the device and of the runtime in reports, as long as nobody says more.
APP = "app"

_IMAGES = PROBES_FOLDER + "images/"
_Rows = tuple[Sequence[str] | None, npt.NDArray[Any]]


@dataclass(eq=False)
class AppDevice:
    """An app as a :class:`samespace.sdk.devices.Device`: it has embedded already.

    Attributes:
        embeddings: ``(n, d)`` float32 in the order of the probe images; not judged yet.
        tensors: ``(n, s, s, 3)`` uint8 or float32, or None when the app does not show them.
        name: what reports call it, e.g. ``"Pixel 7"``.
        words: of the command that judges the same files again.
    """

    embeddings: npt.NDArray[np.float32]
    tensors: npt.NDArray[np.generic] | None = None
    name: str = APP
    words: tuple[str, ...] = ()

    @classmethod
    def from_files(cls, bundle: Bundle, embeddings: Path, tensors: Path | None = None, name: str = APP) -> AppDevice:
        """Read what an app wrote; the formats are those of this module.

        Raises:
            ConfigError: a file that cannot be read, or whose rows are not one of each probe image; names file and image.
        """
        names = probe_names(bundle)
        rows = _ordered(embeddings, _read(embeddings, _EMBEDDINGS), names)
        words = ("--embeddings", str(embeddings))
        if tensors is None:
            return cls(_embeddings(embeddings, rows), None, name, words)
        size = bundle.manifest.model.preprocess.size
        pixels = _ordered(tensors, _tensors(tensors, _read(tensors, _TENSORS), len(names), size), names)
        return cls(_embeddings(embeddings, rows), pixels, name, (*words, "--tensors", str(tensors)))

    def runtimes(self, format: str) -> tuple[str, ...]:
        """The app itself, whatever it runs."""
        return (APP,)

    def embed(self, bundle: Bundle, artifact: str, runtime: str, images: Sequence[bytes], options: RuntimeOptions) -> DeviceRun:
        """What the app computed; see :meth:`samespace.sdk.devices.Device.embed`."""
        return DeviceRun(self.tensors, self.embeddings, "runtime not known")

    def close(self) -> None:
        """Nothing was started."""


def probe_names(bundle: Bundle) -> tuple[str, ...]:
    """File names of the probe images, in their order."""
    return tuple(sorted(e.path.removeprefix(_IMAGES) for e in bundle.manifest.files if e.path.startswith(_IMAGES)))


def _read(path: Path, readers: dict[str, Callable[[Path, bytes], _Rows]]) -> _Rows:
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path}: what a file that ends in {path.suffix!r} holds is not known; write {' or '.join(readers)}")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; let the app write it for the images in {_IMAGES} of the bundle") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not data:
        raise ConfigError(f"{path}: the file is empty; did the app write it to the end?")
    return reader(path, data)


def _npz(wanted: str) -> Callable[[Path, bytes], _Rows]:
    def read(path: Path, data: bytes) -> _Rows:
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except (OSError, ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ConfigError(
                f"{path}: not an .npz file that can be read ({error}); is it whole? Write it with "
                f"numpy.savez(path, {wanted}=...)"
            ) from None
        if wanted not in arrays or set(arrays) - {wanted, "names"}:
            raise ConfigError(f"{path}: expected the arrays {wanted!r} and perhaps 'names', got {sorted(arrays)}")
        names = [str(name) for name in np.atleast_1d(arrays["names"])] if "names" in arrays else None
        return names, arrays[wanted]

    return read


def _npy(path: Path, data: bytes) -> _Rows:
    try:
        return None, np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: not an .npy file that can be read ({error}); is it whole?") from None


def _json(path: Path, data: bytes) -> _Rows:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        # A plain dict would silently keep the last.
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{path}: {_some(twice)} twice; write one embedding for each image")
        return dict(pairs)

    try:
        content = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON that can be read ({error}); did the app write it to the end?") from None
    names = list(content) if isinstance(content, dict) else None
    rows = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ConfigError(f'{path}: expected {{"000.png": [numbers], ...}} or [[numbers], ...]')
    return names, _matrix(path, names, rows)


def _csv(path: Path, data: bytes) -> _Rows:
    try:
        lines = [line for line in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not CSV that can be read ({error})") from None
    # A heading has no number in its second column; a file name is none.
    if lines and len(lines[0]) > 1 and not _is_number(lines[0][1]):
        lines = lines[1:]
    named = any(not _is_number(line[0]) for line in lines)
    names = [line[0].strip() for line in lines] if named else None
    return names, _matrix(path, names, [line[1:] if named else line for line in lines])


_EMBEDDINGS: dict[str, Callable[[Path, bytes], _Rows]] = {".npz": _npz("embeddings"), ".csv": _csv, ".json": _json}
_TENSORS: dict[str, Callable[[Path, bytes], _Rows]] = {
    ".npz": _npz("tensors"),
    ".npy": _npy,
    ".bin": lambda path, data: (None, np.frombuffer(data, np.uint8)),
}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _matrix(path: Path, names: Sequence[str] | None, rows: Sequence[Sequence[Any]]) -> npt.NDArray[np.float64]:
    """Rows of equal length; an app's JSON writes null for what is no number."""
    for at, row in enumerate(rows):
        where = names[at] if names else f"row {at}"
        if len(row) != len(rows[0]):
            raise ConfigError(f"{path}: {where} has {len(row)} numbers, the first row has {len(rows[0])}; is the file whole?")
        for value in row:
            if value is not None and not (isinstance(value, int | float) or (isinstance(value, str) and _is_number(value))):
                raise ConfigError(f"{path}: {where} holds {str(value)[:30]!r}, which is no number")
    return np.array([[np.nan if value is None else float(value) for value in row] for row in rows], np.float64)


def _ordered(path: Path, rows: _Rows, probes: Sequence[str]) -> npt.NDArray[Any]:
    """One row of each probe image, in their order."""
    names, values = rows
    if names is None:
        if values.ndim == 0 or len(values) != len(probes):
            raise ConfigError(
                f"{path}: {len(values) if values.ndim else 0} rows for {len(probes)} probe images; write one row of each image "
                f"in {_IMAGES}, in the order of their names, or name the rows"
            )
        return values
    if len(names) != len(values):
        raise ConfigError(f"{path}: {len(names)} names for {len(values)} rows")
    index = {name: at for at, name in enumerate(probes)} | {PurePosixPath(name).stem: at for at, name in enumerate(probes)}
    order: dict[int, int] = {}
    for row, name in enumerate(names):
        at = index.get(PurePosixPath(name.replace("\\", "/")).name)
        if at is None:
            raise ConfigError(f"{path}: {name!r} is no probe image of this bundle; they are {probes[0]} to {probes[-1]}")
        if at in order:
            raise ConfigError(f"{path}: {probes[at]!r} twice; write one row for each image")
        order[at] = row
    if missing := [name for at, name in enumerate(probes) if at not in order]:
        raise ConfigError(
            f"{path}: {len(missing)} of {len(probes)} probe images are missing: {_some(missing)}; an app that leaves out "
            "images cannot be judged"
        )
    return values[[order[at] for at in range(len(probes))]]


def _embeddings(path: Path, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if rows.ndim != 2 or rows.dtype.kind not in "fiu":
        raise ConfigError(f"{path}: embeddings must be numbers of shape (n, d), got {rows.dtype} {rows.shape}")
    # What is too large for float32 becomes infinite, and is refused as that.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(rows, np.float32)


def _tensors(path: Path, rows: _Rows, n: int, size: int) -> _Rows:
    names, values = rows
    if values.ndim == 1 and values.dtype == np.uint8:
        if len(values) != n * size * size * 3:
            raise ConfigError(
                f"{path}: {len(values)} bytes; {n} images of {size} x {size} pixels with 3 bytes each are {n * size * size * 3}"
            )
        values = values.reshape(n, size, size, 3)
    if values.dtype.kind not in "fiu" or values.ndim != 4 or values.shape[1:] != (size, size, 3):
        hint = "; they are channels first: write them as the model takes them, rows, columns, RGB"
        raise ConfigError(
            f"{path}: tensors must be numbers of shape (n, {size}, {size}, 3), got {values.dtype} {values.shape}"
            + (hint if values.ndim == 4 and values.shape[1:] == (3, size, size) else "")
        )
    if values.dtype == np.uint8:
        return names, values
    floats = values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        levels = floats.astype(np.uint8)
    return names, levels if np.array_equal(levels, floats) else floats


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
