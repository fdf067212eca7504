"""docs/devices.md: the commands of its first sections run, and so do the job file and the example."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from samespace.sdk.signing import TrustStore, key_path

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "devices.md").read_text()
#: The sections whose commands these tests run; those behind them are run by their own.
SECTIONS = ("Check on devices", "Disable what fails", "In CI", "A device of your own")
JOB = ROOT / "docs" / "device-check.yml"
EXAMPLE = ROOT / "examples" / "device_matrix"


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each block of code in the sections."""
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))
    return [found for name in SECTIONS for found in re.findall(r"^```(\w+)\n(.*?)^```$", parts[name], re.MULTILINE | re.DOTALL)]


def emulated(command: str) -> bool:
    return re.search(r"\b(a53|a76|browser|devices install)\b", command) is not None


@pytest.fixture
def reader(toy, tmp_path):
    """A folder with a bundle, and an environment whose key signed it."""
    config = tmp_path / "config"
    TrustStore(config / "trusted").add(toy.signer.public, "toymaker")
    toy.signer.save(config / "keys" / key_path().name)
    toy.write(tmp_path / "phone.samespace")
    (tmp_path / "signer.pub").write_bytes(toy.signer.public.to_pem())
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SAMESPACE_CONFIG_DIR": str(config),
        "SAMESPACE_CACHE_DIR": str(tmp_path / "cache"),
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }
    return tmp_path, environment


def run(text: str, program: list[str], folder: Path, environment: dict[str, str]) -> str:
    result = subprocess.run(program, input=text, text=True, capture_output=True, cwd=folder, env=environment)
    assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def without_core_ml(command: str) -> str:
    """The toy's bundle has no Core ML artifact, and a device on which nothing is checked passes nothing."""
    command = command.replace("--samespace-device host --samespace-device ios-reference", "--samespace-device host")
    return command.replace("host,ios-reference", "host --matrix")


@pytest.mark.devices  # no emulator, but twenty processes
def test_the_commands_of_the_guide_run(reader):
    folder, environment = reader
    ran = 0
    for language, text in blocks():
        if language == "python":
            run(text, [sys.executable, "-"], folder, environment)
            ran += 1
        for command in text.splitlines() if language == "bash" else ():
            if not emulated(command):
                run(without_core_ml(command), ["bash"], folder, environment)
                ran += 1
    assert ran >= 5
    assert "device=" in GUIDE
    assert "passed" in (folder / "devices.html").read_text()


def test_the_job_file_checks_and_fails_when_the_check_fails(toy, reader):
    folder, environment = reader
    job = yaml.safe_load(JOB.read_text())
    (steps,) = [one["steps"] for one in job["jobs"].values()]
    scripts = {step["name"]: step["run"] for step in steps if "run" in step}
    assert "samespace devices install arm64" in scripts["Install"]
    fresh = environment | {"SAMESPACE_CONFIG_DIR": str(folder / "ci"), "DEVICES": "host"}
    out = run("set -e\n" + scripts["Check"].replace("--json", "--matrix --json"), ["bash"], folder, fresh)
    assert "PASS" in out
    kept = next(step for step in steps if step.get("if") == "always()")["with"]["path"].split()
    assert kept == shlex.split(scripts["Check"])[-3::2]
    shutil.rmtree(folder / "phone.samespace")
    toy.write(folder / "phone.samespace", toy.graph(toy.edge, bgr=True))
    result = subprocess.run(["bash", "-ec", scripts["Check"]], cwd=folder, env=fresh, capture_output=True, text=True)
    assert result.returncode == 1


@pytest.mark.devices
def test_the_example_says_what_changed(toy, reader):
    folder, environment = reader
    shutil.copy(EXAMPLE / "matrix.py", folder)
    shown = re.findall(r"^(python .*)$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    commands = [line.replace("host,a53", "host") for line in shown]
    assert len(commands) == 2
    assert "PASS" in run(commands[0], ["bash"], folder, environment)
    assert "nothing changed: 1 checks" in run(commands[1], ["bash"], folder, environment)
    shutil.rmtree(folder / "phone.samespace")
    toy.write(folder / "phone.samespace", toy.graph(toy.edge * 1.001))
    assert "changed: onnx-fp32 in onnx on host" in run(commands[1], ["bash"], folder, environment)


def test_every_device_is_in_the_table():
    from samespace.sdk.devices import device_names

    table = GUIDE.split("## ")[0]
    for name in device_names():
        if "@" not in name:
            assert f"`{name}`" in table, name
