"""The fixed simplex: its geometry, the same in every instance and process, nested, and never learnt."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from samespace.cloud.losses import Batch, Partner, Shape
from samespace.cloud.losses.simplex import Simplex, projection, regular_simplex
from samespace.sdk.errors import ConfigError


@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_a_regular_simplex_has_equal_cosines(count: int) -> None:
    vertices = regular_simplex(count)
    cosines = vertices @ vertices.T
    expected = torch.full((count, count), -1 / (count - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(cosines, expected, atol=1e-12, rtol=0)
    assert torch.linalg.matrix_rank(vertices) == count - 1


@pytest.mark.parametrize(("count", "dim"), [(5, 4), (33, 7), (256, 64)])
def test_the_projection_is_orthonormal_within_the_space_of_the_simplex(count: int, dim: int) -> None:
    columns = projection(count, dim)
    torch.testing.assert_close(columns.T @ columns, torch.eye(dim, dtype=torch.float64), atol=1e-9, rtol=0)
    assert columns.sum(0).abs().max() < 1e-9


def test_of_full_dimension_it_is_regular_still() -> None:
    """K - 1 dimensions: the projection only turns it."""
    head = Simplex(Shape(9, 8), classes=9).head()
    expected = torch.full((9, 9), -1 / 8).fill_diagonal_(1)
    torch.testing.assert_close(head @ head.T, expected, atol=1e-6, rtol=0)


def test_shrunk_its_cosines_stay_around_zero() -> None:
    head = Simplex(Shape(1024, 128)).head()
    assert head.norm(dim=1).sub(1).abs().max() < 1e-6
    cosines = (head @ head.T)[~torch.eye(1024, dtype=torch.bool)]
    assert abs(cosines.mean().item()) < 2e-3
    assert cosines.std().item() == pytest.approx(128**-0.5, rel=0.1)


@pytest.mark.parametrize("dim", [1, 16, 50, 64])
def test_a_narrower_head_is_the_prefix_of_a_wider_one(dim: int) -> None:
    wide, narrow = Simplex(Shape(40, 128), classes=300).head(), Simplex(Shape(40, dim), classes=300).head()
    torch.testing.assert_close(F.normalize(wide[:, :dim], dim=1), narrow, atol=1e-5, rtol=0)


def test_more_training_classes_keep_the_prototypes_of_the_old_ones() -> None:
    assert torch.equal(Simplex(Shape(60, 32)).head()[:40], Simplex(Shape(40, 32)).head())


def test_instances_are_identical_whatever_the_global_generator_and_leave_it_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = Simplex(Shape(40, 32)).head()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(Simplex(Shape(40, 32)).head(), one)


def test_another_process_makes_the_same() -> None:
    program = (
        "import hashlib, torch; torch.manual_seed(5); torch.rand(3);"
        "from samespace.cloud.losses import Shape; from samespace.cloud.losses.simplex import Simplex;"
        "print(hashlib.sha256(Simplex(Shape(20, 16), classes=64).head().numpy().tobytes()).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == hashlib.sha256(Simplex(Shape(20, 16), classes=64).head().numpy().tobytes()).hexdigest()


def test_nothing_of_it_is_learnt_or_stored() -> None:
    loss = Simplex(Shape(5, 4))
    assert loss.stationary
    assert not loss.needs
    assert not list(loss.parameters())
    assert not loss.state_dict()
    assert not loss.head().requires_grad


@pytest.mark.parametrize(("margin", "smoothing"), [(0.0, 0.0), (0.2, 0.0), (0.1, 0.3)])
def test_it_is_a_softmax_over_all_vertices(margin: float, smoothing: float) -> None:
    """Over those without a class, too, so that room is kept for them."""
    shape = Shape(3, 6)
    vertices = F.normalize(regular_simplex(10) @ projection(10, 6), dim=1).float()
    embedding = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([2, 0, 1, 1])
    expected = 0.0
    for row, label in zip(embedding, labels.tolist(), strict=True):
        logits = torch.stack([8.0 * (row @ v - (margin if c == label else 0)) for c, v in enumerate(vertices)])
        target = torch.full((10,), smoothing / 10)
        target[label] += 1 - smoothing
        expected -= (target * (logits - logits.exp().sum().log())).sum().item() / 4
    loss = Simplex(shape, classes=10, scale=8.0, margin=margin, label_smoothing=smoothing)
    assert loss(Batch(embedding, labels), Partner({})).item() == pytest.approx(expected, rel=1e-5)
    assert loss.head().shape == (3, 6)


def test_an_embedding_at_its_vertex_is_better_than_anywhere_else() -> None:
    loss = Simplex(Shape(3, 6), classes=7)
    labels = torch.tensor([0, 1, 2])

    def value(embedding: Tensor) -> float:
        return loss(Batch(embedding, labels), Partner({})).item()

    assert value(loss.head()) < min(value(loss.head().roll(1, 0)), value(-loss.head()))


@pytest.mark.parametrize(("shape", "mend"), [(Shape(65, 8), 65), (Shape(5, 64), 65), (Shape(2, 200), 201)])
def test_too_few_vertices_are_refused_with_the_number_that_would_do(shape: Shape, mend: int) -> None:
    with pytest.raises(ConfigError, match=f"classes = 64 is too few .* set it to {mend} or more"):
        Simplex(shape, classes=64)
    assert Simplex(shape, classes=mend).head().shape == (shape.classes, shape.dim)
