"""Rewrites the tables that documents quote from the ledgers in ``benchmarks/results``.

python benchmarks/tables.py            rewrite
python benchmarks/tables.py --check    exit 1 when a document differs from its ledgers
"""

import json
import re
import sys
from pathlib import Path

from samespace.sdk.evidence import markdown_table, read_ledger

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_EVIDENCE = """# Evidence

Every figure that these documents quote, from the ledgers in `benchmarks/results/`. Do not edit: `python benchmarks/tables.py`
writes this page.
"""


def evidence_page() -> str:
    """``docs/evidence.md``: one section a ledger."""
    sections = [_EVIDENCE]
    for path in sorted(RESULTS.glob("*.json")):
        records = read_ledger(path)
        sections.append(f"## {path.stem}\n\n{markdown_table(records)}")
        if records:
            first = records[0]
            seeds = ", ".join(map(str, first.seeds))
            sections.append(
                f"`{first.command}`, commit `{first.commit}`, seeds {seeds} where no other is named, on {first.device}.\n"
            )
    return "\n".join(sections)


def with_demo_table(readme: str) -> str:
    """The README with the demo's table between its markers."""
    ledger = RESULTS / "demo.json"
    table = json.loads(ledger.read_text()).get("table_markdown", "") if ledger.exists() else ""
    return re.sub(
        r"(<!-- table -->).*?(<!-- /table -->)",
        lambda match: f"{match[1]}\n{table}{match[2]}",
        readme,
        flags=re.DOTALL,
    )


def with_blocks(text: str) -> str:
    """A document with the tables of ledgers between its markers: ``<!-- LEDGER:TABLE -->`` and ``<!-- /LEDGER:TABLE -->``.

    The tables are what the ledger holds under ``tables``; one that it does not hold, yet, is left as it is.
    """

    def block(match: re.Match[str]) -> str:
        ledger = RESULTS / f"{match['ledger']}.json"
        tables = json.loads(ledger.read_text()).get("tables", {}) if ledger.exists() else {}
        if match["table"] not in tables:
            return match[0]
        return f"{match['begin']}\n{tables[match['table']]}{match['end']}"

    marker = r"(?P<begin><!-- (?P<ledger>[a-z_]+):(?P<table>[a-z_]+) -->).*?(?P<end><!-- /(?P=ledger):(?P=table) -->)"
    return re.sub(marker, block, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite, or check."""
    readme = ROOT / "README.md"
    wanted = {ROOT / "docs" / "evidence.md": evidence_page(), readme: with_blocks(with_demo_table(readme.read_text()))}
    pages = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "evidence.md"]
    wanted |= {path: with_blocks(path.read_text()) for path in pages}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} differs from the ledgers: python benchmarks/tables.py")
        sys.exit(bool(stale))
    for path in stale:
        path.write_text(wanted[path])
        print(f"rewrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
