"""The evidence for heterogeneous compatibility: trains what is missing, then reports what is there.

python benchmarks/heterogeneous/run.py                       all of it; stop and start it as you like
python benchmarks/heterogeneous/run.py --size small          10 minutes on 2 cores; no figures for documents
python benchmarks/heterogeneous/run.py --only main,peers     some parts
python benchmarks/heterogeneous/run.py --only ""             only report
python benchmarks/heterogeneous/run.py --list                the jobs, and which are done
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from cells import Cells, read_cells, read_peers
from claims import claims
from documents import plots, tables
from pool import Workplace, cores, run_jobs
from protocol import ARCHITECTURES, CLOUD, DIM, PIXELS, SIZES, Job, jobs, parts
from search import read_search

from samespace.cloud.losses.registry import LOSSES as KNOWN_LOSSES
from samespace.cloud.recipe import Recipe
from samespace.edge.models.macs import count
from samespace.edge.models.registry import build_model
from samespace.sdk.evidence import commit_id, describe_machine, measured_text, write_ledger
from samespace.sdk.files import atomic_write

__all__ = ["report", "unavailable"]

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def main() -> int:
    """0: everything that was asked for is done, whatever the claims say; 1: a job failed; 2: a wrong argument."""
    wanted = _arguments()
    found = jobs(wanted.size)
    place = Workplace(wanted.output or ROOT / "build" / "heterogeneous" / wanted.size, wanted.size)
    place = Workplace(place.folder.absolute(), wanted.size)
    known = parts(found)
    only = known if wanted.only is None else [part for part in wanted.only.split(",") if part]
    if unknown := sorted(set(only) - set(known)):
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = [job for job in found if job.part in only]
    # Whatever needs the cloud model gets it.
    chosen += [job for job in found if job not in chosen and any(job.name in other.after for other in chosen)]
    if wanted.list:
        for job in found:
            state = "done" if place.done(job) else unavailable(job) or ("chosen" if job in chosen else "")
            print(f"{job.name:28} {job.part:12} {job.seconds:6.0f} core-s  {state}")
        return 0
    skipped = {job.name: reason for job in chosen if (reason := unavailable(job))}
    began = time.monotonic()
    failed = run_jobs(
        place, [job for job in chosen if job.name not in skipped], wanted.workers, lambda line: print(line, flush=True)
    )
    minutes = (time.monotonic() - began) / 60
    report(place, found, {**skipped, **failed}, minutes)
    for name, reason in {**skipped, **failed}.items():
        print(f"not done: {name}: {reason}", file=sys.stderr)
    return int(bool(failed))


def unavailable(job: Job) -> str:
    """Why this installation cannot run a job; empty when it can."""
    if absent := sorted(job.losses - set(KNOWN_LOSSES)):
        return f"no loss {', '.join(absent)} here"
    if absent := sorted(set(job.recipe or {}) - set(Recipe.model_fields)):
        return f"no [{', '.join(absent)}] in recipes here"
    if job.part == "search" and not entry_points(group="samespace.commands", name="nas"):
        return "no command samespace nas here"
    return ""


def report(place: Workplace, found: list[Job], problems: dict[str, str], minutes: float) -> None:
    """Write the ledger, the cells and the plots: of the full size to where documents quote them from, else into the folder."""
    seeds = SIZES[place.size].seeds
    cells = read_cells(place.folder, found, seeds)
    read_peers(place.folder, cells)
    winners = read_search(place.folder, cells)
    speed = place.run("throughput") / "done.json"
    macs, cloud_macs = costs(SIZES[place.size].cloud_width)
    command = "make bench NAME=heterogeneous" + ("" if place.size == "full" else f" SIZE={place.size}")
    common = {"seeds": seeds, "device": describe_machine(), "command": command, "commit": commit_id(ROOT)}
    records = claims(cells, macs, cloud_macs, winners, json.loads(speed.read_text()) if speed.exists() else None, common)
    full = place.size == "full"
    pictures = plots(cells, ROOT / "docs" if full else place.folder)
    blocks = tables(cells, macs, cloud_macs, winners)
    blocks["plots"] = "".join(f"![{name.removesuffix('.png').replace('-', ' ')}]({name})\n\n" for name in pictures)
    if (front := place.run("search") / "pareto.png").exists():
        name = "heterogeneous-pareto.png"
        atomic_write((ROOT / "docs" if full else place.folder) / name, front.read_bytes())
        blocks["pareto"] = f"![Candidates of the search by cost and M(q,g), with the supernet's weights]({name})\n"
    target = RESULTS if full else place.folder
    more = {
        "minutes_of_this_call": round(minutes, 1),
        "not_done": problems,
        "tables": blocks,
        "macs": {"cloud": cloud_macs, **macs, **{f"search {name}": cost for name, cost in winners.items()}},
    }
    write_ledger(target / "heterogeneous.json", records, **more)
    atomic_write(target / "details" / "heterogeneous.json", json.dumps(_details(cells), indent=1) + "\n")
    for record in records:
        words = measured_text(record) if record.measured else record.reason
        print(f"{record.id:20} {'holds' if record.holds else 'FAILS'}  {words}")
    print(f"wrote {target / 'heterogeneous.json'}")


def costs(cloud_width: int) -> tuple[dict[str, int], int]:
    """Multiply-accumulates of every architecture, and of the cloud model."""

    def macs(family: str, arguments: dict[str, Any]) -> int:
        return count(build_model(family, {**arguments, "dim": DIM, "image_size": PIXELS}), PIXELS).macs

    cloud = macs(CLOUD["family"], {**CLOUD["arguments"], "width": cloud_width})
    return {name: macs(family, arguments) for name, (family, arguments, _) in ARCHITECTURES.items()}, cloud


def _details(cells: Cells) -> list[dict[str, Any]]:
    """Every cell for itself: one line a model, split and side."""
    return [
        {
            "scope": cell.scope,
            "architecture": cell.architecture,
            "loss": cell.loss,
            "seed": cell.seed,
            "split": split,
            "side": side,
            "recall@1": round(float(values.mean()), 5),
            "n": len(values),
        }
        for (split, cell, side), values in cells.hits.items()
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--only", help="parts, with commas between them; their names: --list")
    parser.add_argument("--output", type=Path, help="folder of runs and logs; build/heterogeneous/SIZE otherwise")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--list", action="store_true", help="show the jobs and stop")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
