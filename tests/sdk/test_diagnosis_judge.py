"""Judging hypotheses on made-up embeddings, where the truth is known; and each other sign of a fault on its own."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from samespace.sdk.check.diagnosis.catalogue import CAUSES, cause_of
from samespace.sdk.check.diagnosis.facts import row_facts
from samespace.sdk.check.diagnosis.faults import Recipe, faulty_tensors, faulty_values, stage_of
from samespace.sdk.check.diagnosis.garbage import has_fully_connected, is_garbage
from samespace.sdk.check.diagnosis.hypotheses import Hypothesis, pairs, read_hypotheses, singles, unit_rows
from samespace.sdk.check.diagnosis.judge import best, judge_all
from samespace.sdk.check.diagnosis.revision import alignment, is_other_revision
from samespace.sdk.preprocess import Preprocess

N, D = 64, 32


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def moved(rows: np.ndarray, generator: np.random.Generator, distance: float) -> np.ndarray:
    """Unit rows at about this distance from ``rows``."""
    step = generator.normal(size=rows.shape)
    return unit_rows(rows + distance * step / np.linalg.norm(step, axis=1, keepdims=True))


def named(embeddings: np.ndarray, reference: np.ndarray, hypotheses: list[Hypothesis], noise: float = 0.0) -> tuple[str, ...]:
    order = best(judge_all(embeddings, np.ones(len(embeddings), bool), reference, hypotheses, noise))
    return order[0].hypothesis.faults if order else ()


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_a_mistake_is_named_even_when_it_is_smaller_than_the_noise(generator: np.random.Generator, noise: float) -> None:
    reference = unit_rows(generator.normal(size=(N, D)))
    known = [Hypothesis((name,), moved(reference, generator, 0.1)) for name in ("bgr", "no_antialias", "squashed")]
    for hypothesis in known:
        assert named(moved(hypothesis.rows, generator, noise), reference, known, noise**2) == hypothesis.faults
    assert named(moved(reference, generator, noise), reference, known, noise**2) == ()


def test_what_goes_another_way_or_only_part_of_it_is_not_named(generator: np.random.Generator) -> None:
    reference = unit_rows(generator.normal(size=(N, D)))
    known = Hypothesis(("bgr",), moved(reference, generator, 0.3))
    half = unit_rows(reference + 0.5 * (known.rows - reference))
    beyond = unit_rows(reference + 2 * (known.rows - reference))
    for rows in (moved(reference, generator, 0.3), half, beyond):
        assert named(rows, reference, [known]) == ()


def test_a_mistake_of_few_probes_is_seen(generator: np.random.Generator) -> None:
    reference = unit_rows(generator.normal(size=(N, D)))
    turned = reference.copy()
    turned[:5] = moved(reference[:5], generator, 0.8)
    assert named(turned, reference, [Hypothesis(("exif_ignored",), turned)]) == ("exif_ignored",)


def test_two_mistakes_are_named_only_where_one_does_not_explain(generator: np.random.Generator) -> None:
    reference = unit_rows(generator.normal(size=(N, D)))
    a, b = moved(reference, generator, 0.5), moved(reference, generator, 0.2)
    both = moved(a, generator, 0.2)[:32]
    known = [Hypothesis(("bgr",), a), Hypothesis(("no_antialias",), b), Hypothesis(("no_antialias", "bgr"), both)]
    assert named(moved(a, generator, 0.05), reference, known, 0.0025) == ("bgr",)
    device = np.concatenate([both, a[32:]])
    assert named(moved(device, generator, 0.05), reference, known, 0.0025) == ("no_antialias", "bgr")


def test_of_mistakes_that_look_alike_here_the_likelier_is_named(generator: np.random.Generator) -> None:
    reference = unit_rows(generator.normal(size=(N, D)))
    rows = moved(reference, generator, 0.3)
    hypotheses = read_hypotheses({"filter_box": rows, "no_antialias": moved(rows, generator, 1e-3), "no_l2": rows})
    assert named(moved(rows, generator, 0.02), reference, list(hypotheses), 4e-4) == ("no_antialias",)


def test_every_fingerprint_belongs_to_a_cause_and_pairs_to_two_stages() -> None:
    assert {cause_of(name) for name in singles()} <= CAUSES.keys()
    assert cause_of("float01_twice") == "range_01"
    assert all(stage_of(a) != stage_of(b) for a, b in pairs())
    for entry in CAUSES.values():
        assert entry.summary
        assert entry.mend


def test_rows_that_are_none_and_norms_that_are_wrong() -> None:
    rows = np.eye(4, dtype=np.float32)
    assert row_facts(rows).broken == row_facts(rows).unnormalised == 0
    broken = row_facts(np.array([[np.nan, 0], [np.inf, 1], [0, 0], [1, 0]], np.float32))
    assert broken.broken == 0.75
    assert broken.usable.tolist() == [False, False, False, True]
    assert row_facts(3 * rows).scaled
    long = row_facts(rows * np.array([[1], [2], [3], [4]], np.float32))
    assert (long.unnormalised, long.scaled) == (0.75, False)


def test_another_model_of_the_space_is_as_near_to_the_cloud_and_an_error_is_not(generator: np.random.Generator) -> None:
    cloud = unit_rows(generator.normal(size=(N, D)))
    reference, other = moved(cloud, generator, 0.6), moved(cloud, generator, 0.6)
    assert is_other_revision(other, reference, cloud)
    assert not is_other_revision(moved(reference, generator, 0.6), reference, cloud)
    assert not is_other_revision(reference, reference, cloud)


def test_a_rotated_space_is_another_model_and_garbage_is_not(generator: np.random.Generator) -> None:
    cloud = unit_rows(generator.normal(size=(N, D)) @ np.diag(np.linspace(3, 0.1, D)))
    reference = moved(cloud, generator, 0.3)
    rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
    assert alignment(reference, reference @ rotation) == pytest.approx(1)
    assert is_other_revision(unit_rows(reference @ rotation), reference, cloud)
    noise = unit_rows(generator.normal(size=(N, D)))
    assert abs(alignment(noise, reference)) < 0.3
    assert not is_other_revision(noise, reference, cloud)
    assert is_garbage(noise, reference)
    constant = np.repeat(noise[:1], N, axis=0)
    assert is_garbage(constant, reference)
    assert not is_other_revision(constant, reference, cloud)
    assert not is_garbage(reference, reference)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, struct.pack("<I", 1 << 30) + bytes(60)])
def test_what_is_no_flatbuffer_has_no_operators(data: bytes) -> None:
    assert not has_fully_connected(data)


def test_values_that_a_graph_would_need_to_be_mistaken() -> None:
    preprocess = Preprocess(size=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    values = np.linspace(0, 255, 30).reshape(1, 10, 1, 3)

    def graph(x: np.ndarray) -> np.ndarray:
        return (x / 255 - mean) / std

    np.testing.assert_allclose(graph(faulty_values(preprocess, values, "no_mean_std")), values / 255, atol=1e-5)
    np.testing.assert_allclose(
        graph(faulty_values(preprocess, values, "mean_std_twice")), (graph(values) - mean) / std, atol=1e-4
    )
    np.testing.assert_allclose(faulty_values(preprocess, values, "range_01"), values / 255, atol=1e-6)
    np.testing.assert_array_equal(faulty_values(preprocess, values, ""), values.astype(np.float32))


def test_a_recipe_without_mistakes_is_the_right_preprocessing(toy) -> None:
    for fit in ("stretch", "crop", "pad"):
        preprocess = toy.preprocess.model_copy(update={"fit": fit})
        for image in toy.images[:4]:
            np.testing.assert_array_equal(faulty_tensors(preprocess, image, [Recipe()])[0], preprocess(image))
