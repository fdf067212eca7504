"""An edge model adapted to one's own classes, while it goes on searching an unchanged cloud gallery for everything else.

Half of the unseen test classes are one's own: some of their pictures are learnt from, of two vendors; those of the other
vendors ask. Queries of the other half ask what the adaptation cost everybody else. The gallery is the cloud model's, of all.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from samespace.cloud.evaluation import embed
from samespace.cloud.finetune.fit import Fitted, fit
from samespace.cloud.finetune.release import released
from samespace.cloud.inputs import normalised
from samespace.cloud.recipe import Recipe
from samespace.cloud.training import train
from samespace.cloud.training.data import load_training_data
from samespace.export.run import RunModel, read_run
from samespace.sdk.files import atomic_write
from samespace.sdk.metrics import recall_at_k

__all__ = ["HOLDS", "LEARNT_FROM", "Constrained", "recipe"]

#: Vendors whose pictures of one's own classes are learnt from, and how many pictures at most.
LEARNT_FROM, IMAGES = ("twemoji", "openmoji"), 500
#: Penalty and hold, to choose from on the validation classes; a hold of 0 is no anchor at all.
PENALTIES, HOLDS = (0.1, 1.0), (10.0, 100.0)
_TRAINED = ("body.1", "head")
_TOLD = 0.5


def recipe(seed: int, steps: int, size: str) -> Recipe:
    """A cloud model and a phone's."""
    shared = {"dim": 64, "preprocess": {"size": 32}}
    arguments = {"stages": 2, "stem_stride": 2, "pooling": "mean", "depth": 2}
    return Recipe.model_validate(
        {
            "name": f"lqf-{seed}",
            "mode": "sequential",
            "seed": seed,
            "steps": steps,
            "batch": 96,
            "data": {"kind": "emoji", "size": size},
            "softmax": {"scale": 16.0},
            "optimiser": {"learning_rate": 3e-3, "weight_decay": 0.02},
            "losses": {
                "cosine_softmax": {"weight": 1.0},
                "partner_head": {"weight": 1.0},
                "regression": {"weight": 5.0},
            },
            "models": {
                "cloud": {**shared, "role": "cloud", "family": "wide_residual", "arguments": {"width": 24, "stages": 2}},
                "phone": {**shared, "role": "edge", "family": "residual", "arguments": {**arguments, "width": 12}},
            },
        }
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """Pictures of one split: to learn from with their targets, to ask with, and the gallery."""

    learnt: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.float32]
    own: tuple[npt.NDArray[np.uint8], list[str]]
    others: tuple[npt.NDArray[np.uint8], list[str]]
    gallery: tuple[npt.NDArray[np.float32], list[str]]


class Constrained:
    """Trained runs and adaptations of one size; what is measured is kept."""

    def __init__(self, folder: Path, seeds: tuple[int, ...], steps: int, size: str, tell: Callable[[str], None]) -> None:
        self.seeds, self._folder, self._tell = seeds, folder / "constrained", tell
        self._recipes = {seed: recipe(seed, steps, size) for seed in seeds}

    def train(self) -> None:
        """All runs; finished ones stay."""
        for seed, one in self._recipes.items():
            if not (self._folder / f"run-{seed}" / "matrices.json").exists():
                train(one, self._folder / f"run-{seed}")

    def phone(self) -> RunModel:
        """The edge model of the first seed."""
        return read_run(self._folder / f"run-{self.seeds[0]}").models["phone"]

    def measured(self) -> dict[str, Any]:
        """Settings, and of each way by seed: hits of own and other queries, drifts and seconds."""
        path = self._folder / "measured.json"
        if not path.exists():
            chosen = self._chosen()
            found = {str(seed): self._measure(seed, chosen) for seed in self.seeds}
            atomic_write(path, json.dumps({"chosen": chosen, "found": found}))
        return json.loads(path.read_text())

    def _chosen(self) -> dict[str, float]:
        """Of the settings that cost other validation queries at most half a point, the one best for one's own."""
        model, side, anchors = self._material(self.seeds[0], "validation")
        before = _hits(model, side)
        rows = []
        for penalty in PENALTIES:
            for hold in HOLDS:
                found = fit(model, side.learnt, side.targets, anchors, trained=_TRAINED, penalty=penalty, hold=hold)
                after = _hits(released(model, [found.adaptation]), side)
                gain, loss = (100 * float((after[key] - before[key]).mean()) for key in ("own", "others"))
                self._tell(f"validation, penalty {penalty}, hold {hold}: own {gain:+.1f}, others {loss:+.1f}")
                rows.append((loss >= -_TOLD, gain if loss >= -_TOLD else loss, {"penalty": penalty, "hold": hold}))
        return max(rows, key=lambda row: row[:2])[2]

    def _measure(self, seed: int, chosen: Mapping[str, float]) -> dict[str, Any]:
        model, side, anchors = self._material(seed, "test")
        begun = time.perf_counter()
        held = fit(model, side.learnt, side.targets, anchors, trained=_TRAINED, **chosen)
        seconds = time.perf_counter() - begun
        free = fit(model, side.learnt, side.targets, anchors[:0], trained=_TRAINED, penalty=chosen["penalty"])
        ways = {
            "before": model,
            "constrained": released(model, [held.adaptation]),
            "constrained, linearised": released(model, [held.adaptation], linearised=True),
            "unconstrained": released(model, [free.adaptation]),
        }
        hits = {name: _hits(one, side) for name, one in ways.items()}
        hits["non-linear"] = _hits(model, side, _nonlinear(model, side, seed))
        for name, one in hits.items():
            self._tell(f"seed {seed}, {name}: own {100 * one['own'].mean():.1f}, others {100 * one['others'].mean():.1f}")
        return {
            "hits": {name: {key: value.tolist() for key, value in one.items()} for name, one in hits.items()},
            "images": len(side.learnt),
            "seconds": seconds,
            **_drifts(model, held, anchors),
        }

    def _material(self, seed: int, part: str) -> tuple[RunModel, _Side, npt.NDArray[np.uint8]]:
        data, run = load_training_data(self._recipes[seed]), read_run(self._folder / f"run-{seed}")
        phone, cloud = run.models["phone"], run.cloud
        queries, gallery = (getattr(data.split, f"{part}_{side}") for side in ("query", "gallery"))
        item = data.images.items

        def pictures(rows: list[int]) -> npt.NDArray[np.uint8]:
            return np.asarray(data.prepared(rows, phone.record.preprocess))

        labels = [item[row].label for row in gallery]
        rows = embed(cloud.build(), np.asarray(data.prepared(gallery, cloud.record.preprocess)), cloud.record.preprocess)
        prototypes = {label: rows[[i for i, one in enumerate(labels) if one == label]].mean(0) for label in set(labels)}
        own = [row for row in queries if _own(item[row].label)]
        learnt = [row for row in own if item[row].source in LEARNT_FROM][:IMAGES]
        asked = [row for row in own if item[row].source not in LEARNT_FROM]
        others = [row for row in queries if not _own(item[row].label)]
        wanted = np.stack([prototypes[item[row].label] for row in learnt])
        side = _Side(
            pictures(learnt),
            wanted / np.linalg.norm(wanted, axis=1, keepdims=True),
            (pictures(asked), [item[row].label for row in asked]),
            (pictures(others), [item[row].label for row in others]),
            (rows, labels),
        )
        assert run.calibration is not None
        return phone, side, run.calibration.prepared(phone.record.preprocess)


def _own(label: str) -> bool:
    return hashlib.sha256(label.encode()).digest()[0] % 2 == 0


def _hits(model: RunModel, side: _Side, network: torch.nn.Module | None = None) -> dict[str, npt.NDArray[np.float64]]:
    network = network or model.build()
    found = {}
    for name, (pictures, labels) in (("own", side.own), ("others", side.others)):
        queries = embed(network, pictures, model.record.preprocess)
        found[name] = np.asarray(recall_at_k(queries, side.gallery[0], labels, side.gallery[1], 1), np.float64)
    return found


def _nonlinear(model: RunModel, side: _Side, seed: int, steps: int = 300, batch: int = 64) -> torch.nn.Module:
    """What most would do: AdamW on the same layers towards the same targets."""
    network = model.build()
    images, wanted = normalised(torch.from_numpy(side.learnt), model.record.preprocess), torch.from_numpy(side.targets)
    weights = [value for name, value in network.named_parameters() if name.startswith(_TRAINED)]
    optimiser = torch.optim.AdamW(weights, 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    chance = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(images), (batch,), generator=chance)
        optimiser.zero_grad()
        (F.normalize(network(images[rows])) - wanted[rows]).square().sum(1).mean().backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def _drifts(model: RunModel, held: Fitted, anchors: npt.NDArray[np.uint8]) -> dict[str, float]:
    """The bound, and the largest change of an anchor: to first order, of the changed weights, of the linearised model."""
    preprocess = model.record.preprocess
    straight = embed(released(model, [held.adaptation], linearised=True).build(), anchors, preprocess)
    moved = np.linalg.norm(straight - embed(model.build(), anchors, preprocess), axis=1)
    return {
        "bound": held.bound,
        "first order": float(held.drift.max()),
        "weights": float(held.measured.max()),
        "linearised": float(moved.max()),
    }
