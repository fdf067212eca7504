"""The bars of the export: exactness, size, speed, time, damaged artifacts, bombs, saturation.

python benchmarks/export/run.py                        trains a model of 2 M parameters first, if it is not there
python benchmarks/export/run.py --size small           a small training and few mutants; no figures for documents
python benchmarks/export/run.py --run RUN --model M    a model of a finished run
python benchmarks/export/run.py --only mutants,bomb    some parts; the others' records stay in the ledger
python benchmarks/export/run.py --list                 the parts
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from claims import PARTS
from prepare import ROOT, Place, Subject, choose_model, trained

from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine, measured_text, read_ledger, write_ledger

__all__ = ["main"]


def main() -> int:
    """0, whatever the claims say; 2: a wrong argument."""
    wanted = _arguments()
    if wanted.list:
        print("\n".join(f"{name:12} {part.__doc__.splitlines()[0]}" for name, part in PARTS.items() if part.__doc__))
        return 0
    only = wanted.only.split(",") if wanted.only else list(PARTS)
    if unknown := sorted(set(only) - set(PARTS)):
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    folder = (wanted.output or ROOT / "build" / "export" / wanted.size).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, wanted.size)
    run = trained(place, wanted.run)
    subject = Subject(place, run, choose_model(run, wanted.model), wanted.workers)
    command = "make bench NAME=export" + ("" if wanted.size == "full" else f" SIZE={wanted.size}")
    common: dict[str, Any] = {"seeds": (0,), "device": describe_machine(), "command": command, "commit": commit_id(ROOT)}
    target = (ROOT / "benchmarks" / "results" if wanted.size == "full" else folder) / "export.json"
    for name in only:
        fresh = [EvidenceRecord(**record, **common) for record in PARTS[name](subject)]
        kept = [record for record in read_ledger(target) if _part(record) != name] if target.exists() else []
        found = sorted([*kept, *fresh], key=lambda record: list(PARTS).index(_part(record)))
        # After each part: whoever stops this keeps what is done.
        write_ledger(target, found, model=subject.model.name, parameters=subject.parameters)
        for record in fresh:
            verdict = "holds" if record.holds else f"does not hold: {record.reason}"
            print(f"{record.id}: {measured_text(record)}, bar: {record.bar}, {verdict}", flush=True)
    return 0


def _part(record: EvidenceRecord) -> str:
    return next((name for name in PARTS if record.id.startswith(name)), list(PARTS)[-1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--run", type=Path, help="a finished run; default: train one")
    parser.add_argument("--model", help="of the run; default: its largest edge model")
    parser.add_argument("--only", default="", help="parts, comma-separated; default: all")
    parser.add_argument("--list", action="store_true", help="print the parts")
    parser.add_argument("--output", type=Path, help="folder to work in; default: build/export/SIZE")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="mutants at once")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
