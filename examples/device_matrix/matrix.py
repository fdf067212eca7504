"""Check a bundle on many devices, and say what changed since the last time.

python matrix.py phone.samespace --device a53,a76,browser,ios-reference
python matrix.py phone.samespace --device a53 --before matrix.json --output new.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from samespace.sdk.check.device_process import Task
from samespace.sdk.check.gate import EXIT_CODES
from samespace.sdk.check.matrix import Matrix
from samespace.sdk.check.matrix_render import matrix_plain
from samespace.sdk.check.matrix_run import check_devices
from samespace.sdk.errors import SamespaceError


def main() -> int:
    """Measure, print, write; the exit code is that of ``samespace check``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="host,ios-reference", help="names, with commas between; samespace devices list")
    parser.add_argument("--output", type=Path, default=Path("matrix.json"))
    parser.add_argument("--before", type=Path, help="matrix.json of an earlier run")
    wanted = parser.parse_args()
    before = Matrix.model_validate_json(wanted.before.read_text()) if wanted.before else None
    try:
        check = check_devices(
            Task(wanted.bundle), wanted.device.split(","), advance=lambda place: print(f"checked {place}", file=sys.stderr)
        )
    except SamespaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(matrix_plain(check.matrix, check.checks))
    for line in changes(before, check.matrix) if before is not None else ():
        print(line)
    wanted.output.write_text(json.dumps(check.matrix.model_dump(mode="json"), indent=1) + "\n")
    return EXIT_CODES[check.matrix.outcome]


def changes(before: Matrix, after: Matrix) -> list[str]:
    """What is not as it was. Equal hashes mean equal embeddings, bit for bit: the same artifact, kernels and pictures."""
    old, new = before.hashes(), after.hashes()
    moved = [f"changed: {place}" for place in new if place in old and old[place] != new[place]]
    added = [f"new: {place}" for place in new if place not in old]
    gone = [f"gone: {place}" for place in old if place not in new]
    return [*moved, *added, *gone] or [f"nothing changed: {len(new)} checks gave the same embeddings, bit for bit"]


if __name__ == "__main__":
    sys.exit(main())
