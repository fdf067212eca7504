"""The check on many devices, on an emulated ARM processor: the matrix, faults that happen there, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samespace.edge.devices.sysroot import sysroot
from samespace.sdk.signing import PublicKey, TrustStore

pytestmark = [pytest.mark.devices, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus" / "bundle-v2"
PLANTED = ROOT / "tests" / "sdk" / "planted_devices.py"
EXAMPLE = ROOT / "examples" / "device_matrix"
CHECK = [sys.executable, "-c", "from samespace.sdk.cli import main; main()", "check", "phone.samespace"]


@pytest.fixture(scope="session", autouse=True)
def arm64() -> None:
    sysroot("arm64").install()


@pytest.fixture(scope="session")
def toy() -> Any:
    """The model small enough to read, of the client library's tests."""
    return runpy.run_path(str(ROOT / "tests" / "sdk" / "conftest.py"))["Toy"]()


@pytest.fixture
def place(tmp_path: Path, toy: Any) -> tuple[Path, dict[str, str]]:
    """A folder with the toy's bundle, and an environment: faulty devices on ARM, a temporary folder that shows who is left."""
    guide = runpy.run_path(str(ROOT / "tests" / "sdk" / "test_check_devices.py"))
    toy.write(
        tmp_path / "phone.samespace",
        probes=toy.probe_set(mistakes=guide["fingerprints"](toy)),
        more_artifacts=[toy.artifact(toy.graph(toy.edge), "int8")],
    )
    trust = TrustStore(tmp_path / "config" / "trusted")
    trust.add(PublicKey.load(CORPUS / "signer.pub.pem"), "corpus")
    trust.add(toy.signer.public, "toymaker")
    site = runpy.run_path(str(PLANTED))["install"](tmp_path / "site")
    (tmp_path / "tmp").mkdir()
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": bin_folder + os.pathsep + os.environ["PATH"],
        "PYTHONPATH": str(site),
        "SAMESPACE_CONFIG_DIR": str(tmp_path / "config"),
        "PLANTED_DEVICES_ON": "a53",
        "TMPDIR": str(tmp_path / "tmp"),
        "COLUMNS": "200",
    }
    return tmp_path, environment


def left(folder: Path) -> list[int]:
    """Processes that work in the check's temporary folders: its own and those of its devices."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve().is_relative_to(folder / "tmp"):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def checked(place: tuple[Path, dict[str, str]], *options: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, matrix by (artifact, runtime, device), output)."""
    folder, environment = place
    command = [*CHECK, *options, "--json", "matrix.json"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550)
    output = result.stdout + result.stderr
    assert (folder / "matrix.json").exists(), output
    cells = json.loads((folder / "matrix.json").read_text())["matrix"]["cells"]
    assert left(folder) == []
    return result.returncode, {(cell["artifact"], cell["runtime"], cell["device"]): cell for cell in cells}, output


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        threading.Event().wait(0.1)


def test_the_matrix_of_an_arm_processor_this_host_and_core_ml(place: tuple[Path, dict[str, str]]) -> None:
    # The corpus: all formats, but too few pictures for its untrained model to find anything by.
    shutil.rmtree(place[0] / "phone.samespace")
    shutil.copytree(next(CORPUS.glob("*.samespace")), place[0] / "phone.samespace")
    _, first, output = checked(place, "--device", "a53,host,ios-reference", "--threads", "1")
    checks = json.loads((place[0] / "matrix.json").read_text())["checks"]
    there = {key[:2] for key in first if key[2] == "a53" and key[1]}
    assert {name for name, _ in there} == {"onnx-int8", "ort-fp32", "tflite-int8-dynamic"}
    for artifact, runtime in there:
        cell = first[artifact, runtime, "a53"]
        judged = {finding["check"]: finding["outcome"] for finding in checks[cell["check"]]["verdict"]["findings"]}
        assert (judged["tensor"], judged["cosine"], judged["overlap"]) == ("pass", "pass", "pass"), output
        assert not cell["diagnosis"]
        assert cell["host"]["largest"] <= cell["host"]["bar"] or cell["host"]["runtime"] != runtime, output
        assert len(cell["embeddings_sha256"]) == 64
    assert first["coreml-palette6", "coreml_reference", "ios-reference"]["host"]["largest"] == 0
    assert checks[first["ort-fp32", "ort", "a53"]["check"]]["report"]["host"]["machine"] == "aarch64"
    _, again, _ = checked(place, "--device", "a53,host", "--artifact", "ort", "--artifact", "onnx", "--threads", "1")
    for key, cell in again.items():
        assert cell["embeddings_sha256"] == first[key]["embeddings_sha256"]


def test_faults_that_happen_on_an_arm_processor_are_named(place: tuple[Path, dict[str, str]]) -> None:
    causes = {"bgr": "bgr", "dark": "no_mean_std", "nearest": "filter_nearest", "raw": "no_l2", "nan": "fp16_overflow"}
    devices = ",".join(f"{name}@a53" for name in causes)
    code, cells, output = checked(place, "--device", f"{devices},a53", "--artifact", "onnx-fp32")
    assert code == 1
    assert cells["onnx-fp32", "onnx", "a53"]["outcome"] == "pass"
    for name, cause in causes.items():
        cell = cells["onnx-fp32", "onnx", f"{name}@a53"]
        assert (cell["outcome"], cell["diagnosis"][:1]) == ("fail", [cause]), output


def test_a_check_that_is_killed_leaves_no_emulator_and_goes_on(place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    command = [*CHECK, "--device", "a53", "--matrix"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def emulated() -> bool:
        names = []
        for pid in left(folder):
            try:
                names.append(Path(f"/proc/{pid}/exe").resolve().name)
            except OSError:
                continue
        assert process.poll() is None, process.communicate()[0].decode()
        return any("qemu" in name for name in names)

    until(emulated)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    until(lambda: left(folder) == [])
    code, cells, _ = checked(place, *command[len(CHECK) :])
    assert {cell["outcome"] for cell in cells.values()} == {"pass"}
    assert code == 0


def test_the_example_runs_on_one_device(place: tuple[Path, dict[str, str]]) -> None:
    folder, environment = place
    shutil.copy(EXAMPLE / "matrix.py", folder)
    commands = re.findall(r"^```bash\n(.*?)^```$", (EXAMPLE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    guide = (ROOT / "docs" / "devices.md").read_text().split("## Check on devices")[1].split("\n## ")[0]
    emulated = re.findall(r"^(samespace check .*\ba53\b.*)$", guide, re.MULTILINE)
    assert emulated
    outputs = []
    for line in [*emulated, *"".join(commands).splitlines()]:
        result = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        outputs.append(result.stdout)
    assert "nothing changed" in outputs[-1]
    assert left(folder) == []
