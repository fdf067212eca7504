"""Adapters against what is known of their optimum, and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from samespace.cloud.adapters import (
    NetworkSettings,
    PairSettings,
    fit_low_rank,
    fit_network,
    fit_pair,
    fit_ridge,
)
from samespace.sdk.adapter import Adapter, AdapterRecord, read_adapter, write_adapter
from samespace.sdk.errors import (
    ConfigError,
    DataError,
    EmbeddingError,
    FormatVersionError,
    IntegrityError,
    SpaceMismatchError,
)

OLD, NEW = "m-" + "0" * 32, "m-" + "1" * 32


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def record(method: str = "ridge", **more: object) -> AdapterRecord:
    return AdapterRecord.model_validate(
        {"method": method, "source_model_id": NEW, "target_model_id": OLD, "pairs": 100, **more}
    )


def adapter_of(weight: np.ndarray, bias: np.ndarray | None = None) -> Adapter:
    tensors = {"linear.weight": weight.astype(np.float32)}
    return Adapter(record(), tensors | ({} if bias is None else {"linear.bias": bias.astype(np.float32)}))


@pytest.fixture
def curved() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes seen by two models, of which no linear map leads from one to the other; and labels."""
    generator = np.random.default_rng(0)
    labels = np.arange(600) % 20
    latent = generator.standard_normal((20, 6))[labels] + 0.3 * generator.standard_normal((600, 6))
    new = unit(np.tanh(latent @ generator.standard_normal((6, 12))) + 0.05 * generator.standard_normal((600, 12)))
    old = unit(np.sin(latent @ generator.standard_normal((6, 8))) + 0.05 * generator.standard_normal((600, 8)))
    return old, new, labels


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(1, 6), st.integers(1, 6), st.floats(1e-4, 1.0))
def test_ridge_is_scikit_learns(seed: int, n: int, d: int, e: int, penalty: float) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.standard_normal((n, d)), generator.standard_normal((n, e))
    weight, bias = fit_ridge(x, y, penalty)
    damping = penalty * x.var(axis=0).mean()
    theirs = Ridge(alpha=damping * n).fit(x, y)
    np.testing.assert_allclose(weight, theirs.coef_.reshape(e, d).T, atol=1e-6)
    np.testing.assert_allclose(bias, np.atleast_1d(theirs.intercept_), atol=1e-6)


def test_low_rank_is_the_best_of_its_rank() -> None:
    """No other map of that rank that descent finds explains more; at full rank it is ridge."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((200, 6))
    y = x @ generator.standard_normal((6, 5)) + 0.1 * generator.standard_normal((200, 5))
    weight, bias = fit_low_rank(x, y, 2, 1e-9)
    assert np.linalg.matrix_rank(weight, tol=1e-8) == 2
    error = np.square(x @ weight + bias - y).sum()
    a, b = generator.standard_normal((6, 2)), generator.standard_normal((2, 5))
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    for _ in range(300):  # alternating least squares
        b = np.linalg.lstsq(centred_x @ a, centred_y, rcond=None)[0]
        a = np.linalg.lstsq(centred_x, centred_y @ np.linalg.pinv(b), rcond=None)[0]
    assert error == pytest.approx(np.square(centred_x @ a @ b - centred_y).sum(), rel=1e-6)
    np.testing.assert_allclose(fit_low_rank(x, y, 5)[0], fit_ridge(x, y)[0], atol=1e-10)


def test_a_network_maps_what_no_linear_map_can(curved: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    old, new, labels = curved
    train, test = slice(0, 450), slice(450, None)
    linear = adapter_of(*fit_ridge(new[train], old[train]))
    tensors = fit_network(new[train], old[train], NetworkSettings(hidden=64, steps=600, discriminative=0))
    network = Adapter(record("network"), tensors)
    errors = [np.square(adapter.apply(new[test]) - old[test]).sum(1) for adapter in (linear, network)]
    assert errors[1].mean() < 0.8 * errors[0].mean()
    # Where it says that it may be wrong, it is.
    sigma = network.uncertainty(new[test])
    assert np.corrcoef(sigma, np.sqrt(errors[1]))[0, 1] > 0.1
    assert (sigma > 0).all()
    assert len(labels) == len(old)


def test_side_information_helps_where_the_old_embedding_has_lost_something() -> None:
    """FCT: the new model sees a second property of each item, which the old embeddings do not hold and the side does."""
    generator = np.random.default_rng(2)
    kept, lost = generator.standard_normal((600, 4)), generator.standard_normal((600, 4))
    old, new, side = unit(kept), unit(np.concatenate([kept, lost], axis=1)), unit(lost)
    options = NetworkSettings(hidden=64, steps=800, discriminative=0)
    train, test = slice(0, 450), slice(450, None)
    alone = Adapter(record("network"), fit_network(old[train], new[train], options))
    beside = Adapter(record("network", side_dim=4), fit_network(old[train], new[train], options, side=side[train]))
    errors = [
        np.square(rows - new[test]).sum(1).mean() for rows in (alone.apply(old[test]), beside.apply(old[test], side[test]))
    ]
    assert errors[1] < 0.3 * errors[0]
    with pytest.raises(SpaceMismatchError, match="needs side information of 4 dimensions"):
        beside.apply(old)


def test_a_pair_makes_all_four_cells_work() -> None:
    """A noisy model and a better, wider one, trained alone: queries of either search galleries of either."""
    generator = np.random.default_rng(4)
    labels = np.arange(600) % 20
    latent = generator.standard_normal((20, 8))[labels]
    old = unit(latent @ generator.standard_normal((8, 8)) + 2.0 * generator.standard_normal((600, 8)))
    new = unit(latent @ generator.standard_normal((8, 12)) + 1.0 * generator.standard_normal((600, 12)))
    pair = fit_pair(old[:450], new[:450], labels[:450], PairSettings(hidden=64, steps=800))
    back, forth = (Adapter(record(name), tensors) for name, tensors in zip(("backward", "forward"), pair, strict=True))
    o, n, names = old[450:], new[450:], labels[450:]
    cells = {"o/o": (o, o), "B/o": (back.apply(n), o), "F/F": (forth.apply(o),) * 2, "B/F": (back.apply(n), forth.apply(o)),
             "F/o": (forth.apply(o), o), "cut": (unit(n[:, :8]), o)}  # fmt: skip
    found = {}
    for name, (query, gallery) in cells.items():
        scores = query @ gallery.T
        np.fill_diagonal(scores, -1)
        found[name] = np.mean(names[scores.argmax(1)] == names)
    assert found["cut"] < 0.3, "two models that were trained alone have no space in common"
    for name in ("B/o", "F/F", "B/F", "F/o"):
        assert found[name] > found["o/o"] - 0.1, found


def test_a_strict_pair_keeps_the_geometry_exactly(curved: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    old, new, labels = curved
    wide = np.concatenate([old, old], axis=1) @ np.linalg.qr(np.random.default_rng(3).standard_normal((16, 16)))[0]
    for rows, target in ((new, unit(wide[:, :12])), (new[:, :8], old)):
        rows = unit(rows)
        strict = fit_pair(target, rows, labels, PairSettings(allowed=0, hidden=16, steps=30)).backward["linear.weight"]
        np.testing.assert_allclose(strict.T @ strict, np.eye(strict.shape[1]), atol=1e-4)
        free = fit_pair(target, rows, labels, PairSettings(allowed=4, hidden=16, steps=200)).backward["linear.weight"]
        assert np.abs(free.T @ free - np.eye(free.shape[1])).max() > 1e-2


def test_the_same_seed_gives_the_same_adapter(curved: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    old, new, labels = curved
    options = PairSettings(hidden=16, steps=20)
    one, other = (fit_pair(old, new, labels, options) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fit_ridge(np.ones((3, 2)), np.ones((4, 2))), DataError, "row i of both"),
        (lambda: fit_ridge(np.full((3, 2), np.nan), np.ones((3, 2))), EmbeddingError, "NaN"),
        (lambda: fit_ridge(np.ones((3, 2)), np.ones((3, 2)), 0), ConfigError, "penalty=0"),
        (lambda: fit_low_rank(np.ones((3, 2)), np.ones((3, 2)), 3), ConfigError, "rank=3 must be between 1 and 2"),
        (lambda: fit_network(np.ones((3, 2)), np.ones((3, 2))), DataError, "at least 20 pairs"),
        (lambda: fit_pair(np.ones((30, 4)), np.ones((30, 2)), np.zeros(30, int)), DataError, "fewer than the old one's 4"),
    ],
)
def test_what_cannot_be_fitted_says_why(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_a_file_gives_the_same_adapter_back(tmp_path: Path, curved: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    old, new, _ = curved
    adapter = Adapter(record("network"), fit_network(new, old, NetworkSettings(hidden=8, steps=10)))
    write_adapter(tmp_path / "a.safetensors", adapter)
    again = read_adapter(tmp_path / "a.safetensors")
    assert again.record == adapter.record
    assert again.adapter_id == adapter.adapter_id
    np.testing.assert_array_equal(again.apply(new), adapter.apply(new))
    write_adapter(tmp_path / "b.safetensors", again)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_adapter(file, adapter_of(np.eye(4)))
    data = file.read_bytes()
    file.write_bytes(data[:-5])
    with pytest.raises(IntegrityError, match="cut off or damaged"):
        read_adapter(file)
    file.write_bytes(data.replace(b'\\"version\\": 1', b'\\"version\\": 7'))
    with pytest.raises(FormatVersionError, match="version 7"):
        read_adapter(file)
    file.write_bytes(safetensors.numpy.save({"weight": np.eye(4)}))
    with pytest.raises(ConfigError, match="no adapter"):
        read_adapter(file)
    with pytest.raises(ConfigError, match="no such adapter"):
        read_adapter(tmp_path / "none")


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"linear.weight": np.full((2, 2), np.nan, np.float32)},
        {"linear.weight": np.eye(2, dtype=np.float32), "linear.bias": np.zeros(3, np.float32)},
        {"linear.weight": np.eye(2, dtype=np.float32), "hidden.0.weight": np.zeros((2, 4), np.float32)},
        {"linear.weight": np.eye(2, dtype=np.float32), "surplus": np.zeros(3, np.float32)},
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(IntegrityError):
        Adapter(record(), tensors)


def test_what_cannot_be_mapped_is_refused() -> None:
    adapter = adapter_of(np.diag([1.0, 0.0]))
    with pytest.raises(SpaceMismatchError, match="of 2 dimensions, not"):
        adapter.apply(np.ones((1, 3)))
    with pytest.raises(EmbeddingError, match="row 1 is mapped to zero"):
        adapter.apply(np.eye(2))
    with pytest.raises(EmbeddingError, match="NaN"):
        adapter.apply(np.array([[np.nan, 1.0]]))
    with pytest.raises(ConfigError, match="does not tell how sure it is"):
        adapter.uncertainty(np.eye(2))
