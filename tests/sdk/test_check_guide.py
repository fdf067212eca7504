"""docs/check.md: every command runs, in order, in one folder, and the code on the page is the code in examples/."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from samespace.sdk.signing import TrustStore

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "check.md").read_text()
BLOCKS = re.findall(r"^( *)```(\w+)\n(.*?)^ *```$", GUIDE, re.MULTILINE | re.DOTALL)
SNIPPETS = {"js": "embeddings.mjs", "kotlin": "Embeddings.kt", "swift": "Embeddings.swift"}


@pytest.fixture
def reader(toy, tmp_path):
    """A folder with what a reader of the guide has, and an environment that trusts the signer."""
    probes = toy.probe_set()
    toy.write(tmp_path / "phone.samespace")
    toy.write(tmp_path / "phone.samespace.zip")
    np.savez(tmp_path / "ours.npz", embeddings=probes.gallery, labels=np.array(toy.gallery_labels))
    rows = [",".join([f"{index:03d}.png", *map(str, row)]) for index, row in enumerate(probes.reference.tolist())]
    (tmp_path / "app.csv").write_text("\n".join(rows))
    shutil.copy(ROOT / "examples" / "check_from_app" / "embeddings.mjs", tmp_path)
    (tmp_path / "tensors.bin").write_bytes(probes.golden.tobytes())
    (tmp_path / "app.json").write_text(str(probes.reference.tolist()))
    TrustStore(tmp_path / "config" / "trusted").add(toy.signer.public, "toymaker")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SAMESPACE_CONFIG_DIR": str(tmp_path / "config"),
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }
    return tmp_path, environment


def test_every_command_runs(reader):
    folder, environment = reader
    ran = 0
    for indent, language, block in BLOCKS:
        if language not in ("bash", "python"):
            continue
        lines = [line.removeprefix(indent) for line in block.splitlines()]
        commands = [("\n".join(lines), [sys.executable, "-"])] if language == "python" else [(line, ["bash"]) for line in lines]
        for text, program in commands:
            result = subprocess.run(program, input=text, text=True, capture_output=True, cwd=folder, env=environment)
            assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
            ran += 1
    assert ran >= 12
    for page in ("report.html", "strict.html", "app.html"):
        assert "passed" in (folder / page).read_text()
    assert "Pixel 7" in (folder / "app.html").read_text()
    images = sorted(path.name for path in (folder / "phone.samespace" / "probes" / "images").iterdir())
    for copied in ("app-images", "app-zip/probes/images"):
        assert sorted(path.name for path in (folder / copied).iterdir()) == images


@pytest.mark.parametrize("language", SNIPPETS)
def test_the_guide_shows_the_code_of_the_examples(language):
    (shown,) = [block for _, found, block in BLOCKS if found == language]
    assert shown == (ROOT / "examples" / "check_from_app" / SNIPPETS[language]).read_text()


def test_the_guide_names_every_option_of_the_plug_in_and_every_fixture():
    code = (ROOT / "sdk" / "samespace" / "sdk" / "pytest_plugin.py").read_text()
    for name in re.findall(r'"(--samespace-[a-z-]+)"', code) + re.findall(r"^def (samespace_\w+)", code, re.MULTILINE):
        assert name in GUIDE, name
