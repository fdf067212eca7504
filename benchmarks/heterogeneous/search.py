"""The architecture search: ``samespace nas`` with ``search.toml``, and what its retrained winners found.

python search.py FOLDER SIZE    needs the cloud model's run in FOLDER; writes FOLDER/runs/search
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import safetensors.numpy
from cells import Cells

from samespace.cloud.recipe import load_recipe
from samespace.edge.models.macs import count
from samespace.edge.models.registry import build_model
from samespace.sdk.files import atomic_write

__all__ = ["read_search"]

HERE = Path(__file__).parent


def main(folder: Path, size: str) -> None:
    """Run the search; a search that was interrupted goes on by itself."""
    recipe = folder / "recipes" / "search.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text((HERE / "search.toml").read_text())
    output = folder / "runs" / "search"
    command = [str(Path(sys.executable).parent / "samespace"), "nas", str(recipe), "-o", str(output)]
    subprocess.run(command, check=True, env={**os.environ, "SAMESPACE_SIZE": size})
    atomic_write(output / "done.json", json.dumps({"size": size}))


def read_search(folder: Path, cells: Cells) -> dict[str, int]:
    """Add the winners' hits (group ``search``: sides ``own``, ``cross``, and ``alone`` for the control) and return their MACs.

    Winners go by reward, ``r1`` to ``r4``; one network may have won several. Its control is the model of the same architecture
    with ``compatible = false`` in the runs ``retrain/seed-N``. As many of the first seeds count as were retrained.
    """
    report = folder / "runs" / "search" / "report.json"
    if not report.exists():
        return {}
    won = {name: winner["rewards"] for name, winner in json.loads(report.read_text())["winners"].items()}
    hits: dict[tuple[str, str, str], list[np.ndarray]] = defaultdict(list)
    macs: dict[str, int] = {}
    for seed in cells.seeds:
        run = folder / "runs" / "search" / "retrain" / f"seed-{seed}"
        if not (run / "matrices.json").exists():
            break
        recipe = load_recipe(run / "recipe.toml", "full")
        found = safetensors.numpy.load_file(run / "queries.safetensors")
        controls = {str(model.arguments): name for name, model in recipe.edges.items() if not model.compatible}
        for name, model in recipe.edges.items():
            if not model.compatible:
                continue
            for reward in map(str.lower, won.get(name, ())):
                macs[reward] = count(build_model(model.family, model.builder_arguments), model.preprocess.size).macs
                sides = {"own": (name, name), "cross": (name, recipe.cloud)}
                if alone := controls.get(str(model.arguments)):
                    sides["alone"] = alone, alone
                for split in ("validation", "test"):
                    for side, (query, gallery) in sides.items():
                        hits[split, reward, side].append(found[f"{split}/{query}->{gallery}"])
    for (split, reward, side), rows in hits.items():
        cells.added[split, "search", reward, side] = np.stack(rows)
    return {name: cost for name, cost in macs.items() if ("test", "search", name, "cross") in cells.added}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
