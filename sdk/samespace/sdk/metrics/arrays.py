"""What every metric asks of its arguments, checked in one place: a metric over NaN or mixed dimensions is a wrong number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samespace.sdk.errors import ConfigError, DataError, EmbeddingError, SpaceMismatchError

__all__ = [
    "NORM_TOLERANCE",
    "Labels",
    "check_k",
    "checked_embeddings",
    "checked_pair",
    "checked_values",
    "label_codes",
    "row_chunks",
    "same_rows",
]

#: One label per row: strings or integers, not a mixture.
Labels = Sequence[str] | Sequence[int] | npt.NDArray[np.str_] | npt.NDArray[np.integer]

#: Scores held at once: 2**22 float32 are 16 MiB, so that a gallery of 100,000 rows is searched 41 queries at a time.
_SCORES_AT_ONCE = 2**22

#: How far from 1 a norm may be. float16 outputs stay within 1e-3; a forgotten normalisation does not.
NORM_TOLERANCE = 2e-3


def checked_embeddings(name: str, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """``rows`` as a contiguous ``(n, d)`` float32 array, n >= 1.

    Raises:
        DataError: not two-dimensional, or empty.
        EmbeddingError: NaN, infinite or not of unit norm; the first such row is named.
    """
    array = np.ascontiguousarray(rows, dtype=np.float32)
    if array.ndim != 2 or 0 in array.shape:
        raise DataError(f"{name} must be embeddings of shape (n, d) with n and d at least 1; got {array.shape}")
    squares = np.einsum("ij,ij->i", array, array)
    # Written so that NaN counts as wrong.
    wrong = np.flatnonzero(~(np.abs(np.sqrt(squares) - 1) <= NORM_TOLERANCE))
    if len(wrong):
        row = int(wrong[0])
        raise EmbeddingError(
            f"{name}: {len(wrong)} of {len(array)} rows are not unit-norm and finite; the first is row {row} with norm "
            f"{np.sqrt(squares[row]):.4g}. Normalise the embeddings first"
        )
    return array


def checked_pair(
    names: tuple[str, str], a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Both arguments checked, and of one dimension.

    Raises:
        SpaceMismatchError: the dimensions differ.
    """
    left, right = checked_embeddings(names[0], a), checked_embeddings(names[1], b)
    if left.shape[1] != right.shape[1]:
        raise SpaceMismatchError(
            f"{names[0]} has {left.shape[1]} dimensions, {names[1]} has {right.shape[1]}: they are not of one space"
        )
    return left, right


def same_rows(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> None:
    """Raises:
    DataError: the two have not the same number of rows, so that row i of one cannot belong to row i of the other.
    """
    if len(a) != len(b):
        raise DataError(f"paired arrays must describe the same items: one has {len(a)} rows, the other {len(b)}")


def checked_values(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``values`` as an ``(n,)`` float64 array, n >= 1, all finite.

    Raises:
        DataError: empty, not one-dimensional, or not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"{name} must be one number per item, at least one; got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: item {int(np.flatnonzero(~np.isfinite(array))[0])} is not a finite number")
    return array


def label_codes(
    query: Labels, gallery: Labels, n_query: int, n_gallery: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels as integers, equal where the labels are equal.

    Raises:
        DataError: another number of labels than of rows, labels of different kinds, or a query label that no gallery row has.
    """
    q, g = np.asarray(query), np.asarray(gallery)
    for side, labels, n in (("query", q, n_query), ("gallery", g, n_gallery)):
        if labels.shape != (n,):
            raise DataError(f"{n} {side} embeddings need {n} {side} labels; got an array of shape {labels.shape}")
    if (q.dtype.kind in "iu") != (g.dtype.kind in "iu"):
        raise DataError(f"query labels are {q.dtype}, gallery labels are {g.dtype}: use strings for both, or integers for both")
    codes = np.unique(np.concatenate([q, g]), return_inverse=True)[1].reshape(-1).astype(np.int64)
    q_codes, g_codes = codes[:n_query], codes[n_query:]
    absent = ~np.isin(q_codes, g_codes)
    if absent.any():
        names = sorted({str(label) for label in q[absent]})
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise DataError(
            f"{int(absent.sum())} queries have no match in the gallery, so nothing could be right for them (labels: {shown}); "
            "add gallery items of these labels, or leave the queries out"
        )
    return q_codes, g_codes


def check_k(k: int, gallery_rows: int) -> None:
    """Raises:
    ConfigError: ``k`` is not between 1 and the number of gallery rows.
    """
    if not 1 <= k <= gallery_rows:
        raise ConfigError(f"k={k} must be between 1 and the {gallery_rows} rows of the gallery")


def row_chunks(n_query: int, n_gallery: int) -> list[slice]:
    """Slices over the queries such that one slice's score matrix stays small."""
    step = max(1, _SCORES_AT_ONCE // n_gallery)
    return [slice(start, start + step) for start in range(0, n_query, step)]
