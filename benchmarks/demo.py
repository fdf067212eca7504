"""The demo at full size as a benchmark: its records, table and contact sheet are what the documents quote."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from samespace.sdk.evidence import read_ledger, write_ledger

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build" / "demo"


def main() -> None:
    """Run the demo from scratch, then copy what the documents quote."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    subprocess.run([sys.executable, ROOT / "examples" / "ship_to_phone" / "demo.py", "--output", OUTPUT], check=True)
    report = json.loads((OUTPUT / "report.json").read_text())
    more = {key: report[key] for key in ("size", "minutes", "checks", "table", "table_markdown")}
    write_ledger(ROOT / "benchmarks" / "results" / "demo.json", read_ledger(OUTPUT / "report.json"), **more)
    shutil.copy(OUTPUT / "contact-sheet.png", ROOT / "docs" / "contact-sheet.png")


if __name__ == "__main__":
    main()
