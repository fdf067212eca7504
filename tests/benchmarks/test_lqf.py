"""The benchmark of linear quadratic fine-tuning: every method learns, and a claim that does not hold is recorded so."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2] / "benchmarks"
FOLDERS = [ROOT / name for name in ("lqf", "heterogeneous")]
NAMES = {path.stem for folder in FOLDERS for path in folder.glob("*.py")}
COMMON = {"seeds": (0, 1), "device": "here", "command": "none", "commit": "unknown"}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """``bench("protocol")``: a module of a folder that is no package."""
    before, path = {name: sys.modules.pop(name, None) for name in NAMES}, list(sys.path)
    sys.path[:0] = [str(folder) for folder in FOLDERS]
    yield importlib.import_module
    sys.path[:] = path
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize("method", ["probe", "exact", "kfac", "kfac-cg", "sgd", "sgd-long", "ce", "ce-kfac", "nonlinear"])
def test_every_method_learns_what_is_easy(bench: Any, method: str) -> None:
    methods = bench("methods")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 64))
    labels = torch.arange(24) % 3
    centres = torch.randn(3, 3, 28, 28)
    images = centres[labels] + 0.3 * torch.randn(24, 3, 28, 28)
    assert method in methods.METHODS
    scores = [methods.learnt(method, network.eval(), images, labels, 0, images, choice) for choice in methods.CHOICES[method]]
    assert max(float((one.argmax(1) == labels).float().mean()) for one in scores) > 0.8


def found(bench: Any, **better: float) -> Any:
    """What would be found where each method's share of hits were that; 0.8 unless told."""
    protocol, learning = bench("protocol"), bench("learning")
    chance = np.random.default_rng(0).random((2, 400))

    def hits(method: str) -> np.ndarray:
        return chance < better.get(method.replace("-", "_"), 0.8)

    row = {
        "hits": {name: {"own": [1.0, 0.0], "others": [1.0, 1.0]} for name in ("before", "constrained")}
        | {"unconstrained": {"own": [1.0, 1.0], "others": [0.0, 1.0]}},
        "images": 500,
        "seconds": 60.0,
        "bound": 0.2,
        "first order": 0.1,
        "weights": 0.11,
    }
    return protocol.Found(
        shots=(5, 10, 50),
        far_shots=(5,),
        ablated=10,
        networks=("deep",),
        near={("deep", method, shots): hits(method) for method in learning.MAIN for shots in (5, 10, 50)},
        ablation={("deep", method, slope): hits(method) for method in learning.ABLATION for slope in (0.2, 0.0)},
        far={("deep", method, 5): hits(method) for method in learning.FAR},
        constrained={"chosen": {}, "found": {"0": row, "1": row}},
        forwards={"last stage": 2.0, "all layers": 3.0},
    )


def holding(bench: Any, it: Any) -> dict[str, bool]:
    return {record.id: record.holds for record in bench("claims").claims(it, COMMON)}


def test_claims_hold_where_they_should(bench: Any) -> None:
    assert holding(bench, found(bench, exact=0.9, kfac=0.9, kfac_cg=0.9, ce_kfac=0.8)) == {
        "L1": True,
        "L2-mse": True,
        "L2-ce": True,
        "L3": True,
        "ablation": False,  # leaky ReLU is no better than ReLU here
        "constrained": True,
        "bound": True,
        "cost": True,
    }


@pytest.mark.parametrize(
    ("better", "failing"),
    [
        ({"nonlinear": 0.95}, "L1"),
        ({"sgd": 0.9}, "L2-mse"),
        ({"ce": 0.9}, "L2-ce"),
        ({"exact": 0.95}, "L3"),
    ],
)
def test_a_claim_that_does_not_hold_is_recorded_with_its_reason(bench: Any, better: dict[str, float], failing: str) -> None:
    shares = {"exact": 0.9, "kfac": 0.9, "kfac_cg": 0.9} | better
    (record,) = (one for one in bench("claims").claims(found(bench, **shares), COMMON) if one.id == failing)
    assert not record.holds
    assert "deep" in record.reason


def test_a_dear_or_drifting_model_is_seen(bench: Any) -> None:
    it = found(bench)
    dear = replace(it, forwards={"last stage": 2.3, "all layers": 3.0})
    assert not holding(bench, dear)["cost"]
    rows = {seed: {**row, "first order": 0.3} for seed, row in it.constrained["found"].items()}
    assert not holding(bench, replace(it, constrained={**it.constrained, "found": rows}))["bound"]


def test_tables_show_every_method(bench: Any) -> None:
    tables = bench("pages").tables(found(bench))
    for method in bench("learning").MAIN:
        assert f"| deep | {method} |" in tables["near"]
    assert "| constrained |" in tables["constrained"]
