"""Whether embeddings are sound, but another model's: judged by the cloud model's embeddings of the same probes.

A mistake in the input adds an error to what the model gives, and so takes it away from the cloud model by about as much.
Another model of the same space is as near to the cloud model as this one, only elsewhere. A model of another space has no
resemblance to the cloud model picture by picture, but orders the pictures among themselves as any sound model does (CKA).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["alignment", "is_other_revision", "one_direction", "separation"]

_Rows = npt.NDArray[np.float32]

#: Another model of the space goes away from the cloud model by less than this share of what it goes away from this one; an
#: error by a half or more.
_AWAY = 0.22
#: Below this share of this model's own distance to the cloud model, embeddings are not another model's.
_ELSEWHERE = 0.05
#: Share of other pictures that a picture's own pair beats; 0.5 is chance.
_NO_RESEMBLANCE = 0.65
#: A sound model has at least this share of this model's alignment with the cloud model, and at least so much.
_ALIGNED, _LEAST_ALIGNED = 0.5, 0.15
_FEWEST = 16
_ONE_DIRECTION = 0.999


def is_other_revision(embeddings: _Rows, reference: _Rows, cloud: _Rows) -> bool:
    """Judge ``(n, d)`` unit-norm rows of the same n probes: the device's, this model's, the cloud model's."""
    if len(embeddings) < _FEWEST or one_direction(embeddings):
        return False
    near = _squared(reference - cloud)
    apart = _squared(embeddings - reference)
    away = _squared(embeddings - cloud) - near - _AWAY * apart
    error = away.std() / np.sqrt(len(away))
    if apart.mean() >= _ELSEWHERE * near.mean() and away.mean() + error < 0:
        return True
    if separation(embeddings, cloud) > _NO_RESEMBLANCE:
        return False
    return alignment(embeddings, cloud) >= max(_LEAST_ALIGNED, _ALIGNED * alignment(reference, cloud))


def alignment(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Linear CKA of ``(n, d)`` and ``(n, e)``, n >= 4, by the unbiased estimate of HSIC (Song et al., 2012, eq. 5); 1 is the
    same up to rotation, about 0 is chance.
    """
    k, l = (_kernel(rows) for rows in (a, b))  # noqa: E741 - as in the paper
    return float(_hsic(k, l) / np.sqrt(max(_hsic(k, k) * _hsic(l, l), 1e-30)))


def _kernel(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    wide = wide - wide.mean(axis=0)
    kernel = wide @ wide.T
    np.fill_diagonal(kernel, 0)
    return kernel


def _hsic(k: npt.NDArray[np.float64], l: npt.NDArray[np.float64]) -> float:  # noqa: E741
    n = len(k)
    mean = k.sum() * l.sum() / ((n - 1) * (n - 2))
    return float((k * l).sum() + mean - 2 * (k.sum(axis=0) * l.sum(axis=0)).sum() / (n - 2))


def separation(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Mean share of the other pictures that a picture's own pair beats; centred, so what all pictures share does not count."""
    first, second = (rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64) for rows in (a, b))
    first, second = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in (first, second))
    scores = first @ second.T
    return float((scores < np.diag(scores)[:, None]).sum() / (len(a) * (len(a) - 1)))


def one_direction(rows: _Rows) -> bool:
    """Whether unit-norm rows are all the same: the mean of unlike ones is shorter than 1."""
    mean = rows.mean(axis=0, dtype=np.float64)
    return float(mean @ mean) > _ONE_DIRECTION


def _squared(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.einsum("ij,ij->i", wide, wide)
