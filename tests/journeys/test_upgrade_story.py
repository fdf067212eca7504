"""examples/upgrade_without_reindex: its three commands tell the story, on a real service, at CI size."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from samespace.cloud.upgrades import read_report

pytestmark = [pytest.mark.export, pytest.mark.database, pytest.mark.timeout(300)]

HERE = Path(__file__).parents[2] / "examples" / "upgrade_without_reindex"


def test_the_story() -> None:
    # A folder for a server that may run as another user: pytest's own folders are for this user only.
    with tempfile.TemporaryDirectory(prefix="samespace-test-") as name:
        output = Path(name)
        output.chmod(0o755)
        (block,) = re.findall(r"^```bash\n(.*?)^```$", (HERE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        steps = [line.removeprefix("python ").split() for line in block.splitlines()]
        late = run([*steps[1], "--output", output], code=1)
        assert "python story.py before" in late, "a step that comes too early says which one is missing"
        said = [run([*step, "--size", "ci", "--output", output]) for step in steps]
        assert "0 (0.0 %) by the new model" in said[1], "not one image is embedded again"
        hits = {when: json.loads((output / f"{when}.json").read_text()) for when in ("before", "after")}
        assert hits["before"].keys() == hits["after"].keys()
        assert hits["before"] != hits["after"]
        assert all(len(row) == 5 for found in hits.values() for row in found.values())
        report = read_report((output / "upgrade.json").read_bytes())
        right = {
            when: sum(Path(row[0]).parent.name == Path(query).parent.name for query, row in found.items())
            for when, found in hits.items()
        }
        # The service finds what the report measured, but for ties and the exported model's rounding.
        assert right["before"] == pytest.approx(sum(report.outcomes.old.recall1), abs=2)
        assert right["after"] == pytest.approx(sum(report.outcomes.new.recall1), abs=2)
        page = (output / "index.html").read_text()
        assert f"<b>{right['before']}</b> of {len(hits['before'])} queries before, <b>{right['after']}</b> after" in page
        assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', page)), "it needs no other file"


def run(words: list[object], code: int = 0) -> str:
    ended = subprocess.run(
        [sys.executable, *map(str, words)], cwd=HERE, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == code, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout + ended.stderr
