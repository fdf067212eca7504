"""The search proper: a first population by proxy, then one evolution for each reward over a common memo."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from samespace.cloud.search.config import RewardName, Search
from samespace.cloud.search.costs import CostTable
from samespace.cloud.search.evolution import evolve
from samespace.cloud.search.limits import Limits
from samespace.cloud.search.memo import Candidate, Memo
from samespace.cloud.search.parts import cost
from samespace.cloud.search.rewards import REWARDS
from samespace.cloud.search.workers import Operation, Workers
from samespace.edge.search import Architecture
from samespace.sdk.cli.progress import progress

__all__ = ["Hunt"]


class Hunt:
    """Proposes, asks, remembers.

    Args:
        search: what is searched.
        memo: what is known already, and where the rest goes.
        table: predicts latency and bytes.
        limits: what is never evaluated.
        workers: who evaluates.
    """

    def __init__(self, search: Search, memo: Memo, table: CostTable, limits: Limits, workers: Workers) -> None:
        self.search, self.memo, self.table, self.limits, self.workers = search, memo, table, limits, workers
        self._visited: dict[str, Candidate] = {}

    def run(self, pool: Sequence[Architecture]) -> list[Candidate]:
        """All candidates that the evolutions visited, in their order, failed ones among them.

        Args:
            pool: random architectures within the limits, from which the proxy chooses the first population.
        """
        first = self._first(pool)
        for reward in self.search.rewards:
            evolve(
                self.search.space,
                self.search.evolution,
                reward,
                first,
                self.limits.fits,
                _Scores(self, reward),
            )
        return list(self._visited.values())

    def evaluated(self, generation: Sequence[Architecture], title: str) -> list[Candidate]:
        """What is known of a generation, after evaluating those of which nothing is."""
        missing = [one for one in generation if one.key not in self.memo.candidates]
        # On disk before anything that was chosen by them: a resumed search must see the same costs.
        self.table.measure_all(missing)
        if missing:
            predicted = [self.table.predict(one) for one in missing]

            def keep(index: int, answer: dict[str, Any]) -> str:
                one = missing[index]
                found = Candidate(
                    key=one.key,
                    architecture=one,
                    **cost(one, self.search.space)._asdict(),
                    latency_ms=predicted[index].latency_ms,
                    file_bytes=int(predicted[index].file_bytes),
                    **answer,
                )
                self.memo.add(found)
                return f"failed: {found.error}" if found.error else f"M(q,g) {100 * found.m_qg:.1f}"

            self._ask("evaluate", missing, title, keep)
        found = [self.memo.candidates[one.key] for one in generation]
        self._visited |= {one.key: one for one in found}
        return found

    def _first(self, pool: Sequence[Architecture]) -> list[Architecture]:
        """The best of the pool by proxy, best first."""
        size = self.search.evolution.population
        if self.search.proxy.pool <= size:
            return list(pool[:size])
        missing = [one for one in pool if one.key not in self.memo.proxies]

        def keep(index: int, answer: dict[str, Any]) -> str:
            self.memo.add_proxy(missing[index].key, answer.get("value"), answer.get("error"))
            return ""

        if missing:
            self._ask("proxy", missing, "Ranking by proxy", keep)
        proxies = self.memo.proxies
        ranked = [(value, one) for one in pool if (value := proxies[one.key]) is not None]
        ranked.sort(key=lambda pair: (-pair[0], pair[1].key))
        # With all of them failed the evaluation shall say why.
        return [one for _, one in ranked[:size]] or list(pool[:size])

    def _ask(self, operation: Operation, missing: Sequence[Architecture], title: str, keep: Any) -> None:
        began = time.monotonic()
        done = 0
        lock = threading.Lock()
        with progress(title, len(missing)) as bar:

            def take(index: int, answer: dict[str, Any]) -> None:
                nonlocal done
                note = keep(index, answer)
                with lock:
                    done += 1
                    rate = 60 * done / max(1e-9, time.monotonic() - began)
                    bar.advance(1, f"{rate:.0f} a minute {note}")

            self.workers.run(operation, missing, take)
        if operation == "evaluate":
            self.memo.add_time(len(missing), time.monotonic() - began)


class _Scores:
    """The scores of one evolution, with the number of the generation for the progress bar."""

    def __init__(self, hunt: Hunt, reward: RewardName) -> None:
        self._hunt, self._reward, self._number = hunt, reward, 0

    def __call__(self, generation: Sequence[Architecture]) -> list[float | None]:
        self._number += 1
        title = f"{self._reward}, generation {self._number} of {self._hunt.search.evolution.generations}"
        value = REWARDS[self._reward]
        found = self._hunt.evaluated(generation, title)
        return [None if one.error is not None else value(one) for one in found]
