"""The winners of each reward, exported whole and measured; one above a hard limit gives way to the next best."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import nn

from samespace.cloud.search.config import Search
from samespace.cloud.search.costs import Measured, latency_ms
from samespace.cloud.search.limits import Limits
from samespace.cloud.search.memo import Candidate
from samespace.cloud.search.rewards import best_first
from samespace.edge.search import Architecture
from samespace.export.conversion import Job, convert
from samespace.export.run import RunModel
from samespace.sdk.cli.progress import progress
from samespace.sdk.errors import ConfigError
from samespace.sdk.files import atomic_write
from samespace.sdk.identity import ModelRecord, digest
from samespace.sdk.preprocess import Preprocess

__all__ = ["Finalist", "Whole", "choose_finalists", "prediction_error"]

#: Candidates of a reward that are exported and found too heavy before the search gives up.
MOST = 25


@dataclass(frozen=True)
class Finalist:
    """A winner.

    Attributes:
        name: of the model in the recipe that retrains it, e.g. ``r2``.
        rewards: that it won; several may agree.
        candidate: what the search found.
        measured: on the whole artifact.
    """

    name: str
    rewards: tuple[str, ...]
    candidate: Candidate
    measured: Measured


class Whole:
    """Whole artifacts of candidates, exported by the project's exporter and measured, once each.

    Args:
        folder: for ``KEY.onnx`` and ``measured.json``.
        search: space and budget.
        preprocess: of the candidates.
        network: architecture -> network with weights.
        machine: as the cost table names it; figures of another one are measured again.
    """

    def __init__(
        self,
        folder: Path,
        search: Search,
        preprocess: Preprocess,
        network: Callable[[Architecture], nn.Module],
        machine: str,
    ) -> None:
        self.folder, self.search, self.preprocess, self.network, self.machine = folder, search, preprocess, network, machine
        self._file = folder / "measured.json"
        content = json.loads(self._file.read_bytes()) if self._file.exists() else {}
        found = content.get("measured", {}) if content.get("machine") == machine else {}
        self.known = {key: Measured(**value) for key, value in found.items()}

    def measure(self, candidates: Sequence[Candidate]) -> None:
        """Export and measure those that are not known yet."""
        missing = [one for one in {one.key: one for one in candidates}.values() if one.key not in self.known]
        if not missing:
            return
        jobs = [Job(self._model(one), "onnx", "fp32") for one in missing]
        with progress("Exporting finalists", len(jobs)) as bar:
            conversions = convert(jobs, 1, lambda job: bar.advance(1, job.model.name))
        size = self.preprocess.size
        image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        for one, conversion in zip(missing, conversions, strict=True):
            data = conversion.files[""]
            atomic_write(self.folder / f"{one.key}.onnx", data)
            self.known[one.key] = Measured(latency_ms(data, image, one.key), conversion.size)
        content = {"machine": self.machine, "measured": {key: value._asdict() for key, value in self.known.items()}}
        atomic_write(self._file, json.dumps(content, indent=2) + "\n")

    def _model(self, one: Candidate) -> RunModel:
        state = self.network(one.architecture).state_dict()
        weights = safetensors.torch.save({name: value.detach().cpu().contiguous() for name, value in state.items()})
        record = ModelRecord(
            name=one.key,
            role="edge",
            family="mobile",
            arguments=one.architecture.arguments(self.search.space),
            dim=self.search.space.dim,
            preprocess=self.preprocess,
            weights_sha256=digest(weights),
        )
        return RunModel(one.key, record, weights)


def choose_finalists(search: Search, candidates: Sequence[Candidate], whole: Whole, limits: Limits) -> list[Finalist]:
    """The best of each reward that keep the limits when measured whole.

    Raises:
        ConfigError: no candidate was evaluated, or none of a reward's best keeps the limits.
    """
    rankings = {reward: best_first(list(candidates), reward)[:MOST] for reward in search.rewards}
    if not any(rankings.values()):
        errors = "; ".join(sorted({one.error for one in candidates if one.error}))
        raise ConfigError(f"all {len(candidates)} candidates failed ({errors}); see candidates.jsonl")
    count = search.finalists.per_reward
    while True:
        taken = {reward: _taken(ranking, whole.known, limits, count) for reward, ranking in rankings.items()}
        # The next ones of each reward that lacks winners; one export for all, since its process takes seconds to start.
        wanted = [
            one
            for reward, ranking in rankings.items()
            for one in [other for other in ranking if other.key not in whole.known][: count - len(taken[reward])]
        ]
        if not wanted:
            break
        whole.measure(wanted)
    for reward, ranking in rankings.items():
        if not taken[reward]:
            least = [min(whole.known[one.key][axis] for one in ranking) for axis in (0, 1)]
            raise ConfigError(
                f"budget: none of the best {len(ranking)} candidates of {reward} keeps it when measured whole (the least were "
                f"{least[0]:.3g} ms, {least[1]:.0f} bytes): the sum of parts is off by more; raise budget.latency_ms or "
                "budget.file_bytes, or search with a lower budget.macs"
            )
    return _named(taken, whole.known)


def prediction_error(measured: Sequence[tuple[Candidate, Measured]]) -> dict[str, dict[str, float]]:
    """Predicted over measured, minus one: the mean, and the largest by size."""
    found = {}
    for axis in ("latency_ms", "file_bytes"):
        errors = [getattr(one, axis) / getattr(real, axis) - 1 for one, real in measured]
        found[axis] = {"mean": float(np.mean(errors)), "largest": max(errors, key=abs), "n": len(errors)}
    return found


def _taken(ranking: Sequence[Candidate], known: Mapping[str, Measured], limits: Limits, count: int) -> list[Candidate]:
    """The best, as far as they are measured without a gap."""
    chosen: list[Candidate] = []
    for one in ranking:
        if len(chosen) == count or one.key not in known:
            break
        if limits.allows(known[one.key]):
            chosen.append(one)
    return chosen


def _named(taken: Mapping[str, Sequence[Candidate]], known: Mapping[str, Measured]) -> list[Finalist]:
    found: dict[str, Finalist] = {}
    for reward, ones in taken.items():
        for place, one in enumerate(ones):
            name = reward.lower() + (f"-{place + 1}" if place else "")
            before = found.get(one.key)
            rewards = (*before.rewards, name.upper()) if before else (name.upper(),)
            found[one.key] = Finalist(before.name if before else name, rewards, one, known[one.key])
    return list(found.values())
