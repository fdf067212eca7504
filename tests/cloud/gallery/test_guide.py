"""docs/gallery.md: every command and snippet runs, in order, in one folder; its figures are those of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from samespace.cloud.gallery.drift import DriftPolicy
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.handshake import HandshakePolicy
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.limits import Limits
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import create_app
from samespace.sdk.signing import TrustStore

from .conftest import Served

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "gallery.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
SERVE = "samespace gallery serve "


@pytest.fixture
def reader(gallery_world, postgres_template: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with what a reader has, where an embedded server may run, too."""
    with tempfile.TemporaryDirectory(prefix="samespace-test-") as name:
        folder = Path(name)
        for bundle in ("cloud", "phone"):
            shutil.copytree(gallery_world.bundle(bundle), folder / f"{bundle}.samespace")
        shutil.copytree(gallery_world.images, folder / "photos")
        for data in ("gallery", "keyed"):
            subprocess.run(["cp", "-a", str(postgres_template), str(folder / data)], check=True)
        TrustStore(folder / "config" / "trusted").add(gallery_world.signer.public, "gallery-world")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        yield folder, os.environ | {"PATH": path, "SAMESPACE_CONFIG_DIR": str(folder / "config")}


@pytest.mark.database
def test_every_command_runs(reader) -> None:
    folder, environment = reader
    served: Served | None = None
    ran: list[str] = []
    try:
        for language, block in BLOCKS:
            for text in [block] if language == "python" else block.strip().splitlines():
                if text.startswith(SERVE):
                    if served is not None:
                        assert served.stop() == 0
                    options = text.removeprefix(SERVE).replace("--port 8765", "").replace("./", f"{folder}/")
                    served = Served(*re.sub(r"(\w+\.samespace)", rf"{folder}/\1", options).split())
                    continue
                url = served.url if served is not None else "http://127.0.0.1:8765"
                program = [sys.executable, "-"] if language == "python" else ["bash"]
                asked = text.replace("http://127.0.0.1:8765", url)
                done = subprocess.run(
                    program, input=asked, text=True, capture_output=True, cwd=folder, env=environment, timeout=120
                )
                assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
                ran.append(done.stdout)
    finally:
        if served is not None:
            served.stop()
    assert len(ran) == 11
    assert "40 added" in ran[0]
    assert "class-1/001.png" in ran[1]
    assert "class-1/001.png" in ran[2]
    assert "class-1/" in ran[3]
    assert "Flushed(sent=1, aside=0, waiting=0" in ran[4]
    assert "Synced(fetched=1, embedded=0, added=0, missing=(), items=1" in ran[4]
    assert "0 added, 40 were there already" in ran[5]
    assert "acme" in ran[8]
    assert '"items":0' in ran[9]
    assert "0 items; recall not measured" in ran[10]


def test_its_figures_are_those_of_the_code() -> None:
    handshake, drift, limits = HandshakePolicy(), DriftPolicy(), Limits()
    for figure in (
        f"embeds {handshake.pictures} pictures",
        f"a token for {handshake.token_seconds / 60:.0f} minutes",
        f"{handshake.answer_seconds / 60:.0f} minutes; it can be",
        f"{drift.reference} are its reference, and each later {drift.window} are",
        f"a probability of at most {drift.false_alarm_rate:g},",
        f"{limits.body >> 20} MiB (`--max-body`)",
        f"evidence {limits.large_body >> 20} MiB, and all together {limits.buffered >> 20} MiB",
        f"must come within {limits.body_seconds:.0f} s",
        f"within {limits.header_seconds:.0f} s what it wants",
        f"one beyond {limits.connections} (`--connections`)",
    ):
        assert figure in " ".join(GUIDE.split()), figure


def test_it_names_every_route() -> None:
    routes = create_app(Gallery(MemoryRegistry(), MemoryIndex())).openapi()["paths"]
    named = GUIDE.replace("{space}", "{space_id}")
    for route in routes:
        assert route.split("/{name}")[0].split("/{key_id}")[0] in named, route
