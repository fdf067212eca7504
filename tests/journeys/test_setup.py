"""What `make` says before it starts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """A PATH on which there is a shell and nothing else."""
    for tool in ("bash", "env"):
        os.symlink(str(shutil.which(tool)), tmp_path / tool)
    return str(tmp_path)


def require(path: str, *tools: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "tools" / "require.sh", *tools], env={"PATH": path}, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("tool", "mend"), [("npm", "Node.js"), ("python3", "python3-venv"), ("made-up-tool", "package manager")]
)
def test_a_missing_tool_is_named_with_what_to_install(bare_path: str, tool: str, mend: str) -> None:
    result = require(bare_path, tool)
    assert result.returncode == 1
    assert tool in result.stderr
    assert mend in result.stderr


def test_every_missing_tool_is_named_at_once(bare_path: str) -> None:
    assert require(bare_path, "npm", "made-up-tool").stderr.count("error:") == 2


def test_nothing_is_said_when_all_is_there() -> None:
    result = require(os.environ["PATH"], "bash", "npm")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("target", ["demo", "test"])
def test_a_target_looks_for_its_tools_before_it_works(target: str) -> None:
    plan = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "require.sh npm" in plan.splitlines()[0]
