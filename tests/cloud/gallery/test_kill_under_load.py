"""SIGKILL of client, service and database under adding, deleting and switching; benchmarks/gallery/kills.py does it often."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.database


def test_what_was_acknowledged_is_there_once_and_unchanged(gallery_world, used_folder: Path) -> None:
    path = Path(__file__).parents[3] / "benchmarks" / "gallery" / "kills.py"
    spec = importlib.util.spec_from_file_location("gallery_kills", path)
    kills = importlib.util.module_from_spec(spec)
    sys.modules["gallery_kills"] = kills
    spec.loader.exec_module(kills)
    folder = used_folder.parent / "killed"
    folder.mkdir()
    shutil.move(used_folder, folder / "data")
    bundles = {name: str(gallery_world.bundle(name)) for name in kills.MODELS}
    findings = kills.run(folder, bundles, rounds=3, seed=7)
    assert findings.rounds == {"client": 1, "service": 1, "database": 1}
    assert findings.wrong == 0, findings
    assert findings.acknowledged > 20
