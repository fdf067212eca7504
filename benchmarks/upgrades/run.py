"""The evidence for upgrades: trains what is missing, then measures and reports what is there.

python benchmarks/upgrades/run.py                 all of it, hours of training; stop and start it as you like
python benchmarks/upgrades/run.py --size small    less training, one repetition
python benchmarks/upgrades/run.py --size ci       minutes; figures mean nothing, everything runs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Paired statistics and records are those of the heterogeneous benchmark; modules of this folder come first.
sys.path.append(str(Path(__file__).parents[1] / "heterogeneous"))

import chains
import flips
import retrieval
from adapted import adapted, refreshed
from cells import Cells
from claims import Found, claims
from classification import Classified
from cost import measure_models, measure_service
from crash import Crashes, crash, toy_upgrade
from learnt import Learnt
from pages import plots, tables
from protocol import CHAINS, SIZES
from training import train_all

from samespace.sdk.evidence import commit_id, describe_machine, measured_text, write_ledger

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

#: Size -> vectors of the large gallery, items embedded anew in it, kills.
EFFORT = {"full": (1_000_000, 4096, 50), "small": (20_000, 640, 9), "ci": (2000, 128, 3)}
#: Methods whose thresholds and groups are measured.
MOVED = ("bct", "ract", "combined", "hoc")


def main() -> int:
    """0: everything was measured, whatever the claims say; 1: a training failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--output", type=Path, help="folder of everything; build/upgrades/SIZE otherwise")
    parser.add_argument("--workers", type=int, default=min(len(os.sched_getaffinity(0)), 3), help="repetitions at once")
    wanted = parser.parse_args()
    folder = (wanted.output or ROOT / "build" / "upgrades" / wanted.size).absolute()
    failed = train_all(folder, wanted.size, wanted.workers, lambda line: print(line, flush=True))
    for name, reason in failed.items():
        print(f"not trained: {name}: {reason}", file=sys.stderr)
    if failed:
        return 1
    report(folder, wanted.size)
    return 0


def measure(folder: Path, size: str) -> Found:
    """Measure what is trained; what takes long is kept in the folder."""
    seeds = SIZES[size].seeds
    cells, classified = Cells(folder, seeds), Classified(folder, seeds)
    vectors, moved, kills = EFFORT[size]
    with _own_trust():
        cost = measure_service(folder / "cost", "ci" if size == "ci" else "small", vectors, moved)
        crashes = _crashed(folder / f"crash-{kills}.json", kills)
    return Found(
        chance=retrieval.chance(cells),
        independent=retrieval.independent(cells),
        steps=retrieval.steps(cells),
        chains={method: chains.chain(cells, method) for method in CHAINS},
        reports={method: chains.reports(cells, method) for method in MOVED},
        flips={
            "same": flips.classified(classified),
            "wide": flips.classified(classified, "wide-"),
            "retrieval": flips.retrieved(cells),
            "ensembles": flips.ensembles(classified),
            "growing": flips.growing(classified),
        },
        adapted=adapted(cells),
        refreshed=refreshed(cells),
        cost=cost | measure_models(Learnt(cells, seeds[0]), vectors),
        crashes=crashes,
    )


def report(folder: Path, size: str) -> None:
    """Write ledger and plots: of the full size to where documents quote them from, else into the folder."""
    found, full = measure(folder, size), size == "full"
    command = "make bench NAME=upgrades" + ("" if full else f" SIZE={size}")
    common: dict[str, Any] = {"seeds": SIZES[size].seeds, "device": describe_machine(), "command": command}
    records = claims(found, common | {"commit": commit_id(ROOT)})
    pictures = plots(found, ROOT / "docs" if full else folder)
    blocks = tables(found)
    blocks["plots"] = "".join(f"![{name.removesuffix('.png').replace('-', ' ')}]({name})\n\n" for name in pictures)
    ledger = (RESULTS if full else folder) / "upgrades.json"
    write_ledger(ledger, records, tables=blocks)
    for record in records:
        print(f"{record.id:20} {'holds' if record.holds else 'FAILS'}  {measured_text(record)}")
    print(f"wrote {ledger}")


def _crashed(kept: Path, kills: int) -> Crashes:
    if not kept.exists():
        with tempfile.TemporaryDirectory(prefix="samespace-kills-") as name:
            kept.write_text(json.dumps(vars(crash(Path(name), toy_upgrade(Path(name)), kills, seed=0))))
    return Crashes(**json.loads(kept.read_bytes()))


@contextmanager
def _own_trust() -> Iterator[None]:
    """The toys' keys are not for the user's trust store."""
    before = os.environ.get("SAMESPACE_CONFIG_DIR")
    with tempfile.TemporaryDirectory(prefix="samespace-trust-") as name:
        os.environ["SAMESPACE_CONFIG_DIR"] = name
        try:
            yield
        finally:
            os.environ.pop("SAMESPACE_CONFIG_DIR")
            if before is not None:
                os.environ["SAMESPACE_CONFIG_DIR"] = before


if __name__ == "__main__":
    sys.exit(main())
