"""Flips and bootstrap intervals against slow references and known coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.metrics import (
    Estimate,
    bootstrap,
    bootstrap_mean,
    negative_flips,
    paired_bootstrap,
    relative_negative_flip_rate,
)

outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50)


@given(outcomes)
def test_flips_are_counted_one_by_one(pairs):
    old, new = zip(*pairs, strict=True)
    flips = [float(was and not now) for was, now in pairs]
    assert negative_flips(old, new).tolist() == flips
    chance = (sum(old) / len(old)) * (sum(not now for now in new) / len(new))
    expected = (sum(flips) / len(flips)) / chance if chance else 0.0
    assert relative_negative_flip_rate(old, new) == pytest.approx(expected)


def test_independent_errors_have_a_relative_rate_of_one():
    generator = np.random.default_rng(0)
    old, new = generator.random(200_000) < 0.7, generator.random(200_000) < 0.8
    assert relative_negative_flip_rate(old, new) == pytest.approx(1, abs=0.03)
    assert relative_negative_flip_rate(old, old) == 0


def test_the_published_figures_fit_equation_11():
    # PCT, table 2, ResNet-18 -> ResNet-18: error rates 30.24 and 30.29 %, NFR 6.44 % -> relative NFR 30.48 %.
    n, both_right = 10_000, 6976 - 644
    old = np.zeros(n, bool)
    old[:6976] = True
    new = np.zeros(n, bool)
    new[:both_right] = True
    new[6976 : 6976 + (6971 - both_right)] = True
    assert negative_flips(old, new).mean() == pytest.approx(0.0644)
    assert relative_negative_flip_rate(old, new) == pytest.approx(0.3048, abs=5e-4)


def test_flips_refuse_other_values_and_lengths():
    with pytest.raises(DataError, match=r"new_correct must hold 0 .* and 1"):
        negative_flips([0, 1], [0.5, 1])
    with pytest.raises(DataError, match="one has 2 rows, the other 1"):
        negative_flips([0, 1], [1])


@settings(max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.integers(0, 5))
def test_bootstrap_is_the_quantiles_of_resampled_means(values, seed):
    estimate = bootstrap_mean(values, n_boot=200, seed=seed, confidence=0.9)
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, len(values), (200, len(values)))
    means = [math.fsum(values[i] for i in row) / len(values) for row in rows]
    assert estimate.value == pytest.approx(math.fsum(values) / len(values), abs=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((np.quantile(means, 0.05), np.quantile(means, 0.95)), abs=1e-9)
    assert estimate.n == len(values)
    assert estimate == bootstrap_mean(values, n_boot=200, seed=seed, confidence=0.9)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    hits = 0
    for seed in range(300):
        estimate = bootstrap_mean(generator.random(200) < 0.3, n_boot=400, seed=seed)
        hits += estimate.low <= 0.3 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.99


def test_pairing_narrows_the_interval():
    generator = np.random.default_rng(2)
    hard = generator.random(300)
    a, b = hard + 0.01 * generator.random(300), hard
    paired, alone = paired_bootstrap(a, b), bootstrap_mean(a)
    assert paired.high - paired.low < (alone.high - alone.low) / 10
    assert paired.value == pytest.approx(float(np.mean(a - b)))


def test_equal_outcomes_differ_by_exactly_nothing():
    values = np.random.default_rng(3).random(50)
    assert paired_bootstrap(values, values) == Estimate(0.0, 0.0, 0.0, 50)


def test_many_values_are_resampled_in_parts(monkeypatch):
    values = np.random.default_rng(4).random(30)
    monkeypatch.setattr(bootstrap, "_VALUES_AT_ONCE", 100)
    estimate = bootstrap_mean(values, n_boot=1000)
    assert estimate.low < values.mean() < estimate.high


def test_estimates_read_as_percent():
    assert str(Estimate(0.44, 0.419, 0.461, 1998)) == "44.0 [41.9, 46.1] (n=1998)"
    assert Estimate(-1e-9, -0.01, 0.0, 5).text() == "0.0 [-1.0, 0.0]"
    assert Estimate(0.99999, 0.9999, 1.0, 5).text(scale=1, digits=4) == "1.0000 [0.9999, 1.0000]"


def test_bootstrap_refuses_nonsense():
    with pytest.raises(DataError):
        bootstrap_mean([])
    with pytest.raises(DataError, match="not a finite"):
        bootstrap_mean([0.1, math.inf])
    with pytest.raises(ConfigError):
        bootstrap_mean([0.1], n_boot=0)
    with pytest.raises(ConfigError):
        bootstrap_mean([0.1], confidence=1.0)
    with pytest.raises(DataError, match="one has 2 rows, the other 1"):
        paired_bootstrap([0.1, 0.2], [0.1])
