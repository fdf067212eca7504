"""A planted rotation is found again, and nothing else is hidden in the map."""

from __future__ import annotations

import numpy as np
import pytest

from samespace.cloud.adapters import apply_procrustes, fit_procrustes
from samespace.sdk.errors import DataError, EmbeddingError


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def orthogonal(d: int, seed: int, reflect: bool) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    if (np.linalg.det(q) < 0) != reflect:
        q[:, 0] *= -1
    return q


@pytest.mark.parametrize("reflect", [False, True])
def test_recovers_a_planted_rotation(reflect: bool) -> None:
    planted = orthogonal(16, 1, reflect)
    source = unit_rows(200, 16, 0)
    found = fit_procrustes(source, source @ planted)
    np.testing.assert_allclose(found, planted, atol=1e-10)
    np.testing.assert_allclose(apply_procrustes(source, found), source @ planted, atol=1e-6)


def test_recovers_it_through_noise_and_beats_every_nearby_rotation() -> None:
    planted = orthogonal(8, 2, reflect=False)
    source = unit_rows(500, 8, 3)
    target = source @ planted + 0.05 * np.random.default_rng(4).standard_normal((500, 8))
    found = fit_procrustes(source, target)
    np.testing.assert_allclose(found, planted, atol=0.05)
    best = np.linalg.norm(source @ found - target)
    for seed in range(20):
        skew = np.random.default_rng(seed).standard_normal((8, 8)) * 0.02
        nearby, _ = np.linalg.qr(found @ (np.eye(8) + skew - skew.T))
        nearby *= np.sign((nearby * found).sum(axis=0))
        assert np.linalg.norm(source @ nearby - target) >= best


def test_map_is_orthogonal_so_cosines_within_the_set_stay() -> None:
    source, target = unit_rows(30, 12, 5), unit_rows(30, 12, 6)
    rotation = fit_procrustes(source, target)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(12), atol=1e-12)
    mapped = apply_procrustes(source, rotation)
    np.testing.assert_allclose(mapped @ mapped.T, source @ source.T, atol=1e-6)


def test_fewer_items_than_dimensions_still_gives_an_orthogonal_map() -> None:
    rotation = fit_procrustes(unit_rows(3, 12, 7), unit_rows(3, 12, 8))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(12), atol=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="same shape"):
        fit_procrustes(unit_rows(5, 4, 0), unit_rows(6, 4, 0))
    with pytest.raises(EmbeddingError, match="NaN"):
        fit_procrustes(unit_rows(5, 4, 0), np.full((5, 4), np.nan))
    with pytest.raises(DataError, match="4 dimensions cannot map"):
        apply_procrustes(unit_rows(5, 6, 0), np.eye(4))
