"""The check on many devices: the matrix, each fault named, and no device's failure costs another's result."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from samespace.sdk.check.device_process import Task
from samespace.sdk.check.diagnosis.faults import Recipe, faulty_tensors, faulty_values
from samespace.sdk.check.html import page
from samespace.sdk.check.matrix import Cell, Matrix, host_bar, host_difference
from samespace.sdk.check.matrix_render import matrix_plain
from samespace.sdk.check.matrix_run import MatrixCheck, check_devices
from samespace.sdk.cli import main
from samespace.sdk.errors import ConfigError
from samespace.sdk.signing import TrustStore

PLANTED = Path(__file__).with_name("planted_devices.py")


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The devices of ``planted_devices.py``, found as any distribution's; returns the folder with their notes."""
    spec = importlib.util.spec_from_file_location("planted_devices_source", PLANTED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.syspath_prepend(str(module.install(tmp_path / "site")))
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv(module.NOTES, str(tmp_path / "notes"))
    return tmp_path / "notes"


@pytest.fixture(autouse=True)
def place(toy, tmp_path, monkeypatch):
    """A configuration that trusts the toy's signer, a cache and a folder to work in."""
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    TrustStore.default().add(toy.signer.public, "toymaker")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bundle(toy, tmp_path):
    """Two artifacts, and the fingerprints of mistakes."""
    return toy.write(
        tmp_path / "toy.samespace",
        probes=toy.probe_set(mistakes=fingerprints(toy)),
        more_artifacts=[toy.artifact(toy.graph(toy.edge), "int8")],
    )


def fingerprints(toy):
    found = {}
    for name in ("bgr", "no_mean_std", "filter_nearest@floor"):
        recipe = Recipe.of(name)
        tensors = np.stack([faulty_tensors(toy.preprocess, image, [recipe])[0] for image in toy.images])
        values = faulty_values(toy.preprocess, tensors, recipe.values).astype(float)
        rows = (values.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(-1, 48) / 127.5 - 1) @ toy.edge
        found[name] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    return found


@pytest.fixture
def run(capsys):
    """``run("check ...")`` -> (exit code, stdout, stderr)."""

    def invoke(command):
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command))
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return invoke


def cells(check: MatrixCheck, device: str) -> list[Cell]:
    return [cell for cell in check.matrix.cells if cell.device == device]


def test_the_matrix_is_printed_and_written_and_two_runs_have_equal_hashes(bundle, planted, run, tmp_path):
    code, out, err = run("check toy.samespace --device host,sound@host --json a.json --html a.html")
    assert code == 0, out + err
    assert out.endswith("PASS: 4 of 4 checks passed\n")
    assert "4/4" in err
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["outcome"] == "pass"
    matrix = saved["matrix"]
    assert [(cell["artifact"], cell["device"]) for cell in matrix["cells"]] == [
        ("onnx-fp32", "host"),
        ("onnx-fp32", "sound@host"),
        ("onnx-int8", "host"),
        ("onnx-int8", "sound@host"),
    ]
    for cell in matrix["cells"]:
        report = saved["checks"][cell["check"]]["report"]
        assert (report["device"], report["artifact"]) == (cell["device"], cell["artifact"])
        assert cell["worst_cosine"] == report["embedding"]["worst_cosine"] > 0.99999
        assert f"{cell['worst_cosine']:.7f}" in out
        assert cell["overlap"] == report["retrieval"]["overlap"]["value"]
        assert cell["recall"] == report["retrieval"]["recall"]["1"]["device"]["value"] > 0.5
        assert (cell["host"] is None) == (cell["device"] == "host")
        assert cell["host"] is None or cell["host"]["largest"] <= 1e-6
    page = (tmp_path / "a.html").read_text()
    assert "sound@host" in page
    assert matrix["cells"][0]["embeddings_sha256"][:12] in page
    # A second run measures anew (nothing is left of the first) and comes to the same bytes.
    assert not list((tmp_path / "cache").rglob("*.npz"))
    assert run("check toy.samespace --device host,sound@host --json b.json")[0] == 0
    again = json.loads((tmp_path / "b.json").read_text())["matrix"]
    assert [cell["embeddings_sha256"] for cell in again["cells"]] == [cell["embeddings_sha256"] for cell in matrix["cells"]]
    # What is saved is judged again as any report.
    assert run("check --report a.json")[0] == 0


def test_faults_that_happen_on_a_device_are_named_and_the_host_is_cleared(bundle, planted):
    causes = {"bgr": "bgr", "dark": "no_mean_std", "nearest": "filter_nearest", "raw": "no_l2", "nan": "fp16_overflow"}
    check = check_devices(Task(bundle), [*(f"{name}@host" for name in causes), "sound@host"], artifacts=["onnx-fp32"])
    assert check.matrix.outcome == "fail"
    assert cells(check, "sound@host")[0].outcome == "pass"
    for name, cause in causes.items():
        (wrong,) = cells(check, f"{name}@host")
        assert wrong.outcome == "fail"
        assert wrong.diagnosis[0] == cause
        if name in ("bgr", "dark", "nearest"):
            assert wrong.host.left == "device"
            assert wrong.host.largest > 1000 * wrong.host.bar


def test_a_device_that_fails_says_so_and_costs_the_others_nothing(bundle, planted, run, tmp_path):
    devices = ["gone@host", "locked@host", "mistaken@host", "host", "once@host", "ios-reference"]
    code, out, _ = run(f"check toy.samespace --device {','.join(devices)} --json x.json --html x.html")
    assert code == 1
    matrix = json.loads((tmp_path / "x.json").read_text())["matrix"]
    found = {(cell["device"], cell["artifact"]): cell for cell in matrix["cells"]}
    assert {found["host", name]["outcome"] for name in ("onnx-fp32", "onnx-int8")} == {"pass"}
    # Started again after each crash; the artifact that does not crash it is checked.
    assert found["once@host", "onnx-fp32"]["state"] == "failed"
    assert found["once@host", "onnx-int8"]["outcome"] == "pass"
    for artifact in ("onnx-fp32", "onnx-int8"):
        assert "SIGKILL" in found["gone@host", artifact]["why"]
        assert "samespace devices install locked" in found["locked@host", artifact]["why"]
        assert "KeyError: 'a mistake in the device's code'" in found["mistaken@host", artifact]["why"].replace('"', "'")
        assert found["ios-reference", artifact]["state"] == "no runtime"
    assert out.count("it is not installed") == 1
    assert "FAIL: 3 of 3 checks passed, 4 devices failed; nothing was checked on ios-reference\n" in out
    assert "device failed" in (tmp_path / "x.html").read_text()


def alive(notes: Path) -> list[int]:
    """Processes that the planted devices were or started, and that still run."""
    pids = {int(line.split()[-1]) for path in notes.iterdir() for line in path.read_text().splitlines()}
    return [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_nothing_is_left_of_devices_whether_they_end_well_or_not(bundle, planted):
    task = Task(bundle, seconds=3)
    check = check_devices(task, ["busy@host", "stubborn@host", "mute@host"], artifacts=["onnx-fp32"])
    assert [cells(check, name)[0].state for name in check.matrix.devices] == ["measured", "measured", "failed"]
    assert cells(check, "mute@host")[0].why == "no answer within 3 s"
    assert len(list(planted.iterdir())) == 3
    assert alive(planted) == []


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.devices)])
def test_a_check_that_is_killed_leaves_no_process_and_goes_on_from_what_it_had(bundle, planted, number, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from samespace.sdk.cli import main; main()",
        "check",
        str(bundle),
        "--device",
        "host,mute@host",
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that a shell started in the background ignore Ctrl-C, and so would all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: len(list((tmp_path / "cache").rglob("*.npz"))) == 2 and (planted / "mute@host").exists(), process)
    wait_for(lambda: "child" in (planted / "mute@host").read_text(), process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in out
    assert ("goes on from what is finished" in out) == (number == signal.SIGINT)
    wait_for(lambda: not alive(planted))
    # The host's two cells are there; on another device nothing is.
    again = check_devices(Task(bundle), ["host", "sound@host"])
    assert again.resumed == 2
    assert again.matrix.outcome == "pass"
    # All is measured now, so nothing is left to go on from.
    assert check_devices(Task(bundle), ["host", "sound@host"]).resumed == 0


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    """Wait until something outside this process has happened; fails after half a minute, or when ``process`` ends before."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        threading.Event().wait(0.05)


def test_finished_cells_are_taken_up_only_for_the_same_question(bundle, planted, toy, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samespace.sdk.check.matrix_store.CellStore.clear", lambda self: None)
        first = check_devices(Task(bundle), ["sound@host"])
    stored = list((tmp_path / "cache").rglob("*.npz"))
    assert len(stored) == 4  # the host's, too
    keep = tmp_path / "keep"
    shutil.copytree(tmp_path / "cache", keep)

    def resumed(task: Task, **options: object) -> MatrixCheck:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.copytree(keep, tmp_path / "cache")
        return check_devices(task, ["sound@host"], **options)

    same = resumed(Task(bundle))
    assert same.resumed == 4
    assert same.matrix == first.matrix
    assert resumed(Task(bundle), fresh=True).resumed == 0
    assert resumed(Task(bundle, settings=first.checks[0][0].settings.model_copy(update={"seed": 1}))).resumed == 0
    other = toy.write(tmp_path / "other.samespace", toy.graph(toy.edge, bgr=True))
    assert resumed(Task(other)).resumed == 0
    # A damaged or an old cell is measured again.
    path = sorted(keep.rglob("*.npz"))
    path[0].write_bytes(path[0].read_bytes()[:100])
    os.utime(path[1], (0, 0))
    assert resumed(Task(bundle)).resumed == 2


def test_a_small_difference_to_the_host_is_told_and_judged_by_nothing(bundle, planted, run):
    code, out, _ = run("check toy.samespace --device noise@host --matrix --artifact onnx-int8")
    assert code == 0, out
    assert "differs  onnx-int8 in onnx on noise@host: from this host by" in out
    assert "the device left the reference" in out


def test_the_difference_says_which_side_left_the_reference(toy, random_units):
    probes, spec = toy.probe_set(), toy.artifact(toy.graph(toy.edge), "int8")[0]
    near = probes.reference
    off = near + 0.01 * random_units(*near.shape)
    other = near + 0.01 * random_units(*near.shape)

    def left(device, host):
        found = host_difference(device.astype(np.float32), host.astype(np.float32), probes, spec, "onnx")
        return found.left, found.within

    assert left(near, near) == ("", True)
    assert left(off, near) == ("device", False)
    assert left(near, off) == ("host", False)
    assert left(off, other) == ("both", False)
    # Not the rounding of 1 - dot: a millionth is seen as a millionth.
    tiny = host_difference((near + 1e-4 * random_units(*near.shape)).astype(np.float32), near, probes, spec, "onnx")
    assert 1e-10 < tiny.largest < 1e-8
    assert host_difference(near * np.nan, near, probes, spec, "onnx") is None
    assert host_difference(near[:, :5], near, probes, spec, "onnx") is None


@pytest.mark.parametrize(
    ("format", "precision", "bar"),
    [
        *(("onnx", "fp32", 1e-6), ("tflite", "fp16", 1e-6), ("onnx", "int8", 1e-5), ("executorch", "int8", 1e-5)),
        *(("onnx", "fp16", 5e-4), ("tflite", "int8-dynamic", 5e-4), ("coreml", "int8", 5e-4), ("coreml", "palette6", 5e-4)),
    ],
)
def test_the_bar_is_one_of_a_precision(toy, format, precision, bar):
    spec = toy.artifact(b"")[0].model_copy(update={"format": format, "precision": precision})
    assert host_bar(spec) == bar


def test_wrong_names_are_told_before_anything_is_started(bundle, planted, run):
    code, _, err = run("check toy.samespace --device host,a99")
    assert (code, "no device is called 'a99'" in err) == (1, True)
    assert "named twice" in run("check toy.samespace --device host,host")[2]
    assert "is no artifact" in run("check toy.samespace --device host,sound@host --artifact onnx-fp16")[2]
    assert "no such gallery" in run("check toy.samespace --device host,sound@host --gallery no.npz")[2].replace("\n", " ")
    code, _, err = run("check toy.samespace --device host,sound@host --runtime tflite")
    assert (code, "none of these devices runs any of it in tflite" in err) == (1, True)
    assert run("check --report a.json --matrix")[0] == 2
    for option in ("--json .", "--html toy.samespace/manifest.json/x.html"):
        assert "cannot be written" in run(f"check toy.samespace --device host,sound@host {option}")[2]
    assert list(planted.iterdir()) == []


def test_a_gallery_of_ones_own_is_searched_on_every_device(bundle, planted, toy, tmp_path):
    np.savez(tmp_path / "ours.npz", embeddings=toy.probe_set().gallery, labels=np.array(toy.gallery_labels))
    check = check_devices(Task(bundle, "ours.npz"), ["host", "sound@host"], artifacts=["onnx-fp32"])
    assert [report.retrieval.gallery for report, _ in check.checks] == ["ours.npz"] * 2
    np.savez(
        tmp_path / "theirs.npz", embeddings=toy.embed(toy.gallery_images, toy.stranger), labels=np.array(toy.gallery_labels)
    )
    assert check_devices(Task(bundle, "theirs.npz"), ["host"], artifacts=["onnx-fp32"]).matrix.outcome == "fail"


def test_an_unsigned_bundle_is_checked_only_when_allowed(toy, planted, tmp_path):
    path = toy.write(tmp_path / "unsigned.samespace", signed=False)
    with pytest.raises(Exception, match="nobody signed"):
        check_devices(Task(path), ["sound@host"])
    check = check_devices(Task(path, allow_unsigned=True), ["sound@host"])
    assert check.matrix.outcome == "pass"
    assert not check.checks[0][0].trusted


def test_the_matrix_says_what_is_missing_and_lets_nothing_into_the_page():
    cells = (
        Cell(device="<b>", artifact="onnx-fp32", runtime="", state="failed", why="<script>gone</script>"),
        Cell(device="<b>", artifact="onnx-fp16", runtime="", state="failed", why="<script>gone</script>"),
        Cell(device="c", artifact="onnx-fp32", runtime="", state="no runtime", why="no runtime for onnx there"),
    )
    about = {"bundle": "b", "model": "m", "model_id": "m-1", "artifacts": ("onnx-fp32", "onnx-fp16")}
    matrix = Matrix(**about, devices=("<b>", "c"), cells=cells, host_failed="it is broken")
    assert (matrix.outcome, matrix.empty, matrix.hashes()) == ("fail", ("c",), {})
    text = matrix_plain(matrix, ())
    assert text.count("FAILED  <b>: <script>gone</script>") == 1
    assert "not compared  this host: no difference to it is told: it is broken" in text
    assert text.endswith("FAIL: 0 of 0 checks passed, 1 device failed; nothing was checked on c")
    html = page((), matrix=matrix)
    assert "<script>" not in html
    assert "&lt;script&gt;gone" in html
    empty = Matrix(**about, devices=("c",), cells=cells[2:])
    assert empty.outcome == "inconclusive"


def test_limits_replace_the_gates(bundle, planted):
    with pytest.raises(ConfigError, match="limit worst_cosine"):
        check_devices(Task(bundle), ["host"], limits={"worst_cosine": 2.0})
    loose = {"worst_cosine": -1.0, "overlap": 0.0, "recall_margin": 1.0, "hard_overlap": 0.0, "hard_margin": 1.0}
    strict = check_devices(Task(bundle), ["bgr@host"], artifacts=["onnx-fp32"])
    loosened = check_devices(Task(bundle), ["bgr@host"], artifacts=["onnx-fp32"], limits=loose)
    assert strict.matrix.outcome == "fail"
    findings = {finding.check: finding.outcome for finding in loosened.checks[0][1].findings}
    assert findings["cosine"] == findings["overlap"] == "pass"
