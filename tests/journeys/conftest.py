"""One run of the demo at CI size serves all journeys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's output folder, and what it printed."""
    output = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "examples" / "ship_to_phone" / "demo.py", "--size", "ci", "--output", output]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return output, result.stdout
