"""What is computed once and kept: the cache folder, and decoded pictures as one memory-mapped array."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import platformdirs

from samespace.cloud.data.images import ImageSet
from samespace.cloud.data.parallel import default_workers, for_each, shown
from samespace.sdk.errors import DataError, ImageError
from samespace.sdk.identity import canonical_json, digest
from samespace.sdk.preprocess import Preprocess

__all__ = ["cache_folder", "cached_tensors"]


def cache_folder() -> Path:
    """Where fetched packages and rendered pictures are kept: ``SAMESPACE_CACHE_DIR``, or the user's cache folder."""
    return Path(os.environ.get("SAMESPACE_CACHE_DIR") or platformdirs.user_cache_dir("samespace"))


def cached_tensors(
    images: ImageSet,
    indices: Sequence[int],
    preprocess: Preprocess,
    cache_dir: Path | None = None,
    workers: int | None = None,
    show_progress: bool = True,
) -> npt.NDArray[np.uint8]:
    """Decode and resize pictures once; later calls map the same file.

    Args:
        images: where they come from.
        indices: which, in which order.
        preprocess: what is done to them; only what touches the pixels is part of the cache's key, mean and std are not.
        cache_dir: see :func:`cache_folder`.
        workers: threads that decode (Pillow releases the GIL).
        show_progress: on stderr.

    Returns:
        ``(len(indices), size, size, 3)`` uint8 RGB, read-only and memory-mapped.

    Raises:
        DataError: a picture cannot be decoded.
    """
    spec = preprocess.model_dump(mode="json", exclude={"mean", "std"})
    keys = [images.items[index].key for index in indices]
    name = digest(canonical_json([images.fingerprint, spec, keys]))[:32]
    path = (cache_dir or cache_folder()) / "tensors" / f"{name}.npy"
    shape = (len(keys), preprocess.size, preprocess.size, 3)
    if 0 in shape:
        return np.empty(shape, np.uint8)
    if (found := _mapped(path, shape)) is not None:
        return found

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name}.")
    os.close(handle)
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)

        def decode(row: int) -> None:
            try:
                array[row] = preprocess(images.load(indices[row]))
            except ImageError as error:
                raise DataError(f"{images.name}: {keys[row]}: {error}") from error

        with shown(f"Decoding {images.name}", len(keys), show_progress) as bar:
            for_each(len(keys), decode, workers=workers or default_workers(), bar=bar)
        array.flush()
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    found = _mapped(path, shape)
    if found is None:
        raise DataError(f"{path} cannot be read back: check the disk, or set SAMESPACE_CACHE_DIR to another one")
    return found


def _mapped(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """The array in ``path``; None where it is missing, damaged or another one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.dtype == np.uint8 and array.shape == shape else None
