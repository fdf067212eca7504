"""The evidence for linear quadratic fine-tuning: measures what is missing, then reports.

python benchmarks/lqf/run.py               all of it, about three hours on two cores; stop and start it as you like
python benchmarks/lqf/run.py --size ci     minutes; figures mean nothing, everything runs
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

#: Paired statistics and records are those of the heterogeneous benchmark; modules of this folder come first.
sys.path.append(str(Path(__file__).parents[1] / "heterogeneous"))

import numpy as np
import torch
from claims import claims
from constrained import Constrained
from cost import forwards
from learning import ABLATION, FAR, MAIN, Learning
from networks import NETWORKS
from pages import tables
from protocol import SIZES, Found

from samespace.sdk.evidence import commit_id, describe_machine, measured_text, write_ledger

ROOT = Path(__file__).parents[2]


def main() -> int:
    """0: everything was measured, whatever the claims say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--output", type=Path, help="folder of everything; build/lqf/SIZE otherwise")
    wanted = parser.parse_args()
    full = wanted.size == "full"
    folder = (wanted.output or ROOT / "build" / "lqf" / wanted.size).absolute()
    found = measure(folder, wanted.size)
    command = "make bench NAME=lqf" + ("" if full else f" SIZE={wanted.size}")
    common: dict[str, Any] = {"seeds": SIZES[wanted.size].seeds, "device": describe_machine(), "command": command}
    records = claims(found, common | {"commit": commit_id(ROOT)})
    ledger = (ROOT / "benchmarks" / "results" if full else folder) / "lqf.json"
    write_ledger(ledger, records, tables=tables(found))
    for record in records:
        print(f"{record.id:20} {'holds' if record.holds else 'FAILS'}  {measured_text(record)}")
    print(f"wrote {ledger}")
    return 0


def measure(folder: Path, size: str) -> Found:
    """Measure; every cell is kept in the folder."""
    scale = SIZES[size]

    def tell(line: str) -> None:
        print(line, flush=True)

    learning = Learning(folder, scale.seeds, tell)
    learning.train()
    names = list(NETWORKS)[: scale.networks]
    near = {
        (name, method, shots): learning.hits(name, method, shots) for name in names for shots in scale.shots for method in MAIN
    }
    ablation = {
        (name, method, slope): learning.hits(name, method, scale.ablated, slope=slope)
        for name in names
        for method in ABLATION
        for slope in (0.2, 0.0)
    }
    far = {
        (name, method, shots): learning.hits(name, method, shots, "far")
        for name in names
        for shots in scale.far
        for method in FAR
    }
    constrained = Constrained(folder, scale.seeds, scale.steps, scale.data, tell)
    constrained.train()
    threads = torch.get_num_threads()
    return Found(
        shots=scale.shots,
        far_shots=scale.far,
        ablated=scale.ablated,
        networks=tuple(names),
        near={key: np.asarray(value) for key, value in near.items()},
        ablation=ablation,
        far=far,
        constrained=constrained.measured(),
        forwards=forwards(constrained.phone(), threads),
    )


if __name__ == "__main__":
    sys.exit(main())
