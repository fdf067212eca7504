"""Formulas, the front, evolution, costs and the file: each against something slower or simpler."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samespace.cloud.search.config import Budget, Evolution
from samespace.cloud.search.costs import CostTable, Measured
from samespace.cloud.search.evaluate import Evaluator, Pictures, estimate_statistics
from samespace.cloud.search.evolution import draw, evolve
from samespace.cloud.search.limits import Limits
from samespace.cloud.search.memo import Candidate, Memo
from samespace.cloud.search.pareto import front
from samespace.cloud.search.parts import cost, parts_of
from samespace.cloud.search.proxy import linear_cka, rank_correlation
from samespace.cloud.search.rewards import REWARDS, best_first
from samespace.edge.models import build_model, count
from samespace.edge.search import Architecture, SearchSpace, Supernet
from samespace.sdk.errors import ConfigError, EmbeddingError
from samespace.sdk.preprocess import Preprocess

TINY: dict[str, Any] = {
    "image_size": 8,
    "dim": 6,
    "stem_strides": [1],
    "stem_widths": [4],
    "widths": [[4, 8]],
    "depths": [1, 2],
}


def architecture(seed: int = 0, space: SearchSpace | None = None) -> Architecture:
    return (space or SearchSpace(**TINY)).sample(random.Random(seed))


def candidate(seed: int, **more: Any) -> Candidate:
    one = architecture(seed)
    values = {"macs": 10, "params": 5, "latency_ms": 0.5, "file_bytes": 100, **more}
    return Candidate(key=one.key, architecture=one, **values)


# --- rewards ---------------------------------------------------------------------------------------------------------------


def angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


class _Looked(nn.Module):
    """Gives each picture the row that its first pixel names."""

    def __init__(self, rows: np.ndarray) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.from_numpy(rows), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows[((x[:, 0, 0, 0] * 0.5 + 0.5) * 255).round().long()]


def test_an_evaluation_and_its_rewards_against_a_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n, m = 30, 40
    rows = angles(*rng.uniform(0, 360, n + m))
    cloud = angles(*rng.uniform(0, 360, n + m))
    cloud[: n + m : 2] = rows[: n + m : 2]
    labels = np.concatenate([np.arange(n) % 6, np.arange(m) % 6]).astype(np.int64)

    def pictures(start: int, stop: int) -> np.ndarray:
        return np.broadcast_to(np.arange(start, stop, dtype=np.uint8)[:, None, None, None], (stop - start, 8, 8, 3)).copy()

    def hits(a: np.ndarray, b: np.ndarray) -> list[bool]:
        return [bool(labels[n:][int(np.argmax([float(q @ g) for g in b]))] == labels[i]) for i, q in enumerate(a)]

    right_before = hits(cloud[:n], cloud[n:])
    judged_on = Pictures(
        statistics=pictures(0, 4)[None],
        proxy=pictures(0, 4),
        proxy_cloud=cloud[:4],
        query=pictures(0, n),
        gallery=pictures(n, n + m),
        query_labels=labels[:n],
        gallery_labels=labels[n:],
        gallery_cloud=cloud[n:],
        cloud_hits=np.array(right_before, np.float64),
    )
    evaluator = Evaluator(Supernet(SearchSpace(**TINY)), judged_on, Preprocess(size=8), torch.device("cpu"))
    monkeypatch.setattr(evaluator, "network", lambda one: _Looked(rows))
    worth = evaluator.evaluate(architecture())
    own, cross = hits(rows[:n], rows[n:]), hits(rows[:n], cloud[n:])
    flips = sum(old and not new for old, new in zip(right_before, cross, strict=True)) / n
    relative = flips / (sum(right_before) / n * (1 - sum(cross) / n))
    assert worth.m_qq == pytest.approx(sum(own) / n)
    assert worth.m_qg == pytest.approx(sum(cross) / n)
    assert worth.negative_flips == pytest.approx(flips)
    assert worth.relative_negative_flips == pytest.approx(relative)
    assert 0 < worth.m_qq != worth.m_qg > 0 < flips

    values = {name: getattr(worth, name) for name in ("m_qq", "m_qg", "negative_flips", "relative_negative_flips")}
    found = candidate(0, latency_ms=0.25, **values)
    assert REWARDS["R1"](found) == pytest.approx(sum(own) / n)
    assert REWARDS["R2"](found) == pytest.approx(sum(cross) / n)
    assert REWARDS["R3"](found) == pytest.approx(sum(own) * sum(cross) / n**2)
    assert REWARDS["R4"](found) == pytest.approx(sum(cross) / n * (1 - relative) / 0.25)


def test_best_first_prefers_the_cheaper_of_equals_and_leaves_out_what_failed() -> None:
    ones = [candidate(0, m_qq=0.5, macs=9), candidate(1, m_qq=0.5, macs=8), candidate(2, m_qq=0.9, error="x"), candidate(3)]
    assert [one.key for one in best_first(ones, "R1")] == [ones[1].key, ones[0].key, ones[3].key]
    assert best_first(ones[::-1], "R1") == best_first(ones, "R1")


# --- front -----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    def beaten(point: tuple[int, int]) -> bool:
        return any(cost <= point[0] and value >= point[1] and (cost, value) != point for cost, value in points)

    chosen = front(points)
    assert sorted(chosen) == [index for index, point in enumerate(points) if not beaten(point)]
    assert [points[index][0] for index in chosen] == sorted(points[index][0] for index in chosen)


# --- evolution -------------------------------------------------------------------------------------------------------------


class Word(NamedTuple):
    letters: tuple[int, ...]

    @property
    def key(self) -> str:
        return "".join(map(str, self.letters))


class Words:
    """24 digits of base 4; one is worth how many of them are 3, and every other pair of neighbours that are both 3."""

    def sample(self, rng: random.Random) -> Word:
        return Word(tuple(rng.randrange(4) for _ in range(24)))

    def mutate(self, architecture: Word, rng: random.Random, rate: float) -> Word:
        return Word(tuple(rng.randrange(4) if rng.random() < rate else letter for letter in architecture.letters))

    def crossover(self, one: Word, other: Word, rng: random.Random) -> Word:
        return Word(tuple(rng.choice(pair) for pair in zip(one.letters, other.letters, strict=True)))


def worth(word: Word) -> float:
    pairs = zip(word.letters[::2], word.letters[1::2], strict=True)
    return word.letters.count(3) + sum(a == b == 3 for a, b in pairs)


def bred(seed: int, **more: Any) -> list[tuple[Word, float]]:
    settings = Evolution(population=20, generations=10, parents=6, mutation_rate=0.08, seed=seed)
    scored: list[list[float | None]] = []
    first = draw(Words(), 20, lambda word: True, random.Random(seed), set())

    def scores(generation: Any) -> list[float | None]:
        scored.append([worth(one) for one in generation])
        return scored[-1]

    arguments = {"fits": lambda word: True, "scores": scores, **more}
    return evolve(Words(), settings, "R1", first, **arguments)


def test_evolution_beats_random_search_with_as_many_tries() -> None:
    better = 0
    for seed in range(10):
        found = bred(seed)
        assert len(found) == 200 == len({one.key for one, _ in found})
        rng = random.Random(1000 + seed)
        better += found[0][1] > max(worth(Words().sample(rng)) for _ in range(len(found)))
    assert better == 10


def test_the_same_seed_breeds_the_same_and_another_one_others() -> None:
    assert bred(1) == bred(1)
    assert bred(1) != bred(2)


def test_what_does_not_fit_is_never_scored_and_what_failed_has_no_children() -> None:
    scored: list[Word] = []

    def scores(generation: Any) -> list[float | None]:
        scored.extend(generation)
        return [None if one.letters[0] == 0 else worth(one) for one in generation]

    first = draw(Words(), 20, lambda word: word.letters[1] != 3, random.Random(0), set())
    settings = Evolution(population=20, generations=6, parents=6, mutation_rate=0.08)
    found = evolve(Words(), settings, "R1", first, lambda word: word.letters[1] != 3, scores)
    assert all(one.letters[1] != 3 for one in scored)
    assert all(one.letters[0] != 0 for one, _ in found)
    assert len(found) < len(scored) == 120


def test_a_space_that_is_used_up_ends_the_evolution() -> None:
    class Few(Words):
        def sample(self, rng: random.Random) -> Word:
            return Word((rng.randrange(4),))

    settings = Evolution(population=3, generations=9, parents=2, mutation_rate=0.5)
    first = draw(Few(), 3, lambda word: True, random.Random(0), set())
    found = evolve(Few(), settings, "R1", first, lambda word: True, lambda ones: [float(one.letters[0]) for one in ones])
    assert [score for _, score in found] == [3, 2, 1, 0]


# --- costs -----------------------------------------------------------------------------------------------------------------


def test_the_parts_cost_what_the_whole_costs() -> None:
    space = SearchSpace(image_size=16, dim=8, stem_strides=(1, 2), stem_widths=(4, 8), widths=((4, 8), (8, 12)), depths=(1, 2))
    rng = random.Random(0)
    for pooling in ("map", "mean"):
        varied = space.model_copy(update={"pooling": pooling})
        for _ in range(25):
            one = varied.sample(rng)
            assert cost(one, varied) == count(build_model("mobile", one.arguments(varied)), 16)
            head = parts_of(one, varied)[-1]
            assert (head.outputs, head.side) == (8, 16 // one.stem_stride // 4)


def test_the_table_measures_once_and_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace(**TINY)
    table = CostTable(tmp_path / "costs.json", space)
    one = architecture(3)
    table.measure_all([one])
    found = table.predict(one)
    network = build_model("mobile", one.arguments(space))
    weights = sum(value.numel() * 4 for value in network.parameters())
    assert weights < found.file_bytes < weights + 20_000
    assert 0 < found.latency_ms < 100
    # A second table reads the first one's figures, whatever it would measure now.
    again = CostTable(tmp_path / "costs.json", space)
    monkeypatch.setattr("samespace.cloud.search.costs.latency_ms", lambda *arguments: pytest.fail("measured again"))
    assert again.predict(one) == found
    # On another machine they do not hold.
    content = json.loads((tmp_path / "costs.json").read_text())
    (tmp_path / "costs.json").write_text(json.dumps({"another machine": next(iter(content.values()))}))
    assert len(CostTable(tmp_path / "costs.json", space)) == 0


def test_limits_ask_the_table_last_and_tell_the_smallest() -> None:
    space = SearchSpace(**TINY)
    asked: list[str] = []
    table: Any = SimpleNamespace(predict=lambda one: asked.append(one.key) or Measured(0.3, 900))
    one = architecture(0, space)
    macs, params = cost(one, space)
    assert Limits(Budget(macs=macs, params=params), space, table).fits(one)
    assert not Limits(Budget(macs=macs - 1, latency_ms=1), space, table).fits(one)
    assert not Limits(Budget(macs=macs, params=params - 1, latency_ms=1), space, table).fits(one)
    assert not asked
    assert Limits(Budget(macs=macs, latency_ms=0.3, file_bytes=900), space, table).fits(one)
    slow = Limits(Budget(macs=macs, latency_ms=0.2), space, table)
    assert not slow.fits(one)
    assert "budget.latency_ms = 0.2 (smallest found: 0.3)" in slow.explain()
    assert not slow.allows(Measured(0.21, 1))
    assert slow.allows(Measured(0.2, 10**9))


# --- evaluation ------------------------------------------------------------------------------------------------------------


def test_statistics_are_the_mean_over_the_batches_and_momentum_stays() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    norm.running_mean = torch.full((3,), 50.0)
    batches = [torch.randn(5, 3, 4, 4) * (number + 1) + number for number in range(3)]
    estimate_statistics(nn.Sequential(norm), batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0))
    variances = [batch.transpose(0, 1).flatten(1).var(1) for batch in batches]
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert norm.momentum == 0.1
    assert not norm.training


@given(st.integers(0, 10**6))
def test_cka_does_not_see_rotation_scale_and_shift_and_is_the_kernels_alignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(12, 4)), rng.normal(size=(12, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert linear_cka(a, 3 * a @ rotation + 7) == pytest.approx(1)
    centre = np.eye(12) - 1 / 12
    left, right = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    expected = (left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum())
    assert linear_cka(a, b) == pytest.approx(expected)


def test_cka_of_dead_features_is_refused() -> None:
    with pytest.raises(EmbeddingError):
        linear_cka(np.ones((5, 3)), np.eye(5))
    with pytest.raises(EmbeddingError):
        linear_cka(np.full((5, 3), np.nan), np.eye(5))


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 10], [5, 6, 7, 8]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 2], [1, 2, 1, 2]) == pytest.approx(0)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


# --- the file --------------------------------------------------------------------------------------------------------------


def test_the_memo_is_read_back_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    memo = Memo(path, "a")
    memo.add(candidate(0, m_qg=0.25))
    memo.add(candidate(1, error="RuntimeError: no"))
    memo.add_proxy("k", 0.5)
    memo.add_proxy("l", None, "broken")
    memo.add_time(2, 4.0)
    memo.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "cand')
    again = Memo(path, "a")
    again.add(candidate(2))
    again.close()
    third = Memo(path, "a")
    assert list(third.candidates.values()) == [candidate(0, m_qg=0.25), candidate(1, error="RuntimeError: no"), candidate(2)]
    assert third.proxies == {"k": 0.5, "l": None}
    assert third.per_minute == pytest.approx(30)
    third.close()
    with pytest.raises(ConfigError, match="--no-resume"):
        Memo(path, "b")
