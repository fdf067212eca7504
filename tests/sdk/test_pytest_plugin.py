"""The plug-in of pytest, as a user's CI runs it: in a process of its own, on the example project, on a real bundle."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from samespace.sdk.signing import TrustStore

EXAMPLE = Path(__file__).parents[2] / "examples" / "check_in_ci"


@pytest.fixture
def project(toy, tmp_path):
    """The example, and a configuration that trusts the toy's signer; the test puts the bundle in."""
    shutil.copytree(EXAMPLE, tmp_path / "project")
    TrustStore(tmp_path / "config" / "trusted").add(toy.signer.public, "toymaker")
    return tmp_path / "project"


def pytest_in(folder, *arguments, autoload=False, path=None):
    """(exit code, output); with ``autoload`` pytest finds the plug-in itself, and loads all others that are installed.

    ``path`` is where more distributions are.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    environment |= {"SAMESPACE_CONFIG_DIR": str(folder.parent / "config"), "COLUMNS": "200"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    if not autoload:
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        arguments = ("-p", "samespace.sdk.pytest_plugin", *arguments)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def fingerprints(toy):
    """What the export would have written: the embeddings of the probes with channels swapped."""
    golden = toy.preprocess.batch(toy.images)[..., ::-1].astype(float)
    rows = (golden.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(-1, 48) / 127.5 - 1) @ toy.edge
    return {"bgr": (rows / (rows**2).sum(1, keepdims=True) ** 0.5).astype("float32")}


def test_the_example_passes_on_a_good_bundle(toy, project):
    (command,) = re.findall(r"^```bash\n(.*)\n```$", (project / "README.md").read_text(), re.MULTILINE)
    assert command == "pytest"
    toy.write(project / "phone.samespace", more_artifacts=[toy.artifact(toy.graph(toy.edge), "int8")])
    code, output = pytest_in(project, "-v", autoload=True)
    assert code == 0, output
    assert "samespace::onnx-fp32[onnx] PASSED" in output
    assert "samespace::onnx-int8[onnx] PASSED" in output
    assert "4 passed" in output


def test_the_example_fails_on_a_bad_bundle_and_names_the_cause(toy, project):
    probes = toy.probe_set(mistakes=fingerprints(toy))
    toy.write(project / "phone.samespace", toy.graph(toy.edge, bgr=True), probes=probes)
    code, output = pytest_in(project, "-v")
    assert code == 1
    assert "samespace::onnx-fp32[onnx] FAILED" in output
    assert "FAIL: onnx-fp32 in onnx on host" in output
    assert "worst-1 % cosine to the reference" in output
    assert "diagnosis: bgr" in output
    assert "again with: samespace check" in output
    # The project's own test fails for the same reason; in no traceback is code of samespace.
    assert "FAIL: onnx-fp32 in app on this test" in output
    assert "check/suite.py" not in output


def test_without_the_option_nothing_is_collected_and_nothing_is_loaded(tmp_path):
    (tmp_path / "test_a.py").write_text(
        "import sys\n"
        "def test_a():\n"
        "    assert 'samespace.sdk.pytest_plugin' in sys.modules\n"
        "    heavy = {'numpy', 'pydantic', 'PIL', 'httpx', 'cryptography', 'onnxruntime', 'torch'}\n"
        "    assert not heavy & set(sys.modules)\n"
        "    assert not [name for name in sys.modules if name.startswith('samespace.sdk.check')]\n"
    )
    # Without the plug-ins of others, which may load what they like.
    code, output = pytest_in(tmp_path)
    assert code == 0, output
    assert "1 passed" in output
    assert "samespace::" not in output


def test_a_fixture_without_the_option_says_what_to_give(tmp_path):
    (tmp_path / "test_a.py").write_text("def test_a(samespace_bundle): pass\n")
    code, output = pytest_in(tmp_path)
    assert code == 1
    assert "this test needs --samespace-bundle PATH" in output


def test_every_fixture_gives_what_it_says(toy, project):
    toy.write(project / "phone.samespace")
    (project / "tests" / "test_search.py").write_text(
        "import numpy as np, pytest\n"
        "def test_all(samespace_bundle, samespace_probes, samespace_gallery, samespace_embedder, samespace_report,\n"
        "             samespace_check):\n"
        "    assert samespace_bundle.manifest.model.name == 'toy'\n"
        "    assert len(samespace_probes) == 64 and len(samespace_gallery.embeddings) == 200\n"
        "    rows = samespace_embedder.embed(samespace_probes.images)\n"
        "    assert samespace_report() is samespace_report('onnx-fp32', 'onnx') is samespace_report('onnx')\n"
        "    assert samespace_report().tensor.exact == 64\n"
        "    report = samespace_check(rows)\n"
        "    assert report.tensor is None and report.reproduce == ''\n"
        "    with pytest.raises(AssertionError, match='off by|differ from the golden'):\n"
        "        samespace_check(rows, samespace_probes.golden[..., ::-1])\n"
        "    with pytest.raises(AssertionError, match='FAIL: onnx-fp32 in app on this test'):\n"
        "        samespace_check(rows[::-1], artifact='onnx-fp32')\n"
    )
    code, output = pytest_in(project)
    assert code == 0, output


def test_the_suite_is_chosen_as_other_tests_are_and_runs_in_parallel(toy, project):
    toy.write(project / "phone.samespace", more_artifacts=[toy.artifact(toy.graph(toy.edge), "int8")])
    for arguments, chosen in (
        (["-k", "int8"], 1),
        (["-m", "not samespace"], 2),
        (["--samespace-artifact", "onnx-int8"], 3),
    ):
        code, output = pytest_in(project, "--collect-only", "-q", *arguments)
        assert len(re.findall("::", output)) == chosen, output
    code, output = pytest_in(project, "-p", "xdist", "-n", 2)
    assert code == 0, output
    assert "4 passed" in output


def test_too_few_images_fail_unless_allowed(toy, project):
    fields = ("images", "golden", "reference", "cloud", "probe_labels")
    few = toy.probe_set(**{name: getattr(toy.probe_set(), name)[:20] for name in fields}, mistakes={})
    toy.write(project / "phone.samespace", probes=few)
    code, output = pytest_in(project, "-m", "samespace")
    assert code == 1
    assert "INCONCLUSIVE: onnx-fp32 in onnx on host" in output
    assert "only 20 probe images; 64 would decide" in output
    assert pytest_in(project, "-m", "samespace", "--samespace-allow-inconclusive")[0] == 0


def test_a_gallery_of_another_space_fails(toy, project):
    import numpy as np

    toy.write(project / "phone.samespace")
    np.savez(project / "theirs.npz", embeddings=toy.embed(toy.gallery_images, toy.stranger), labels=toy.gallery_labels)
    code, output = pytest_in(project, "-m", "samespace", "--samespace-gallery", "theirs.npz")
    assert code == 1
    assert "of another space" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samespace-bundle", "nowhere"], "nowhere"),
        (["--samespace-artifact", "tflite"], "onnx-fp32"),
        (["--samespace-runtime", "tensorrt"], "no runtime is called 'tensorrt'"),
        (["--samespace-gallery", "nowhere.npz"], "nowhere.npz: no such gallery file"),
    ],
)
def test_what_cannot_be_checked_ends_the_session_with_one_line(toy, project, arguments, message):
    toy.write(project / "phone.samespace")
    code, output = pytest_in(project, *arguments)
    assert code == 4
    (line,) = [line for line in output.splitlines() if line.startswith("ERROR: ")]
    assert message in line
    assert "Traceback" not in output


def test_a_strangers_bundle_needs_a_word(toy, project):
    toy.write(project / "phone.samespace", signed=False)
    code, output = pytest_in(project)
    assert code == 4
    assert "unsigned" in output
    assert pytest_in(project, "-m", "samespace", "--samespace-allow-unsigned")[0] == 0


def test_an_artifact_that_nothing_here_runs_is_skipped_with_the_reason(toy, project):
    spec, files = toy.artifact(toy.graph(toy.edge), "fp16")
    pte = spec.model_copy(update={"format": "executorch", "path": "artifacts/model.pte"})
    toy.write(project / "phone.samespace", more_artifacts=[(pte, files)])
    code, output = pytest_in(project, "-m", "samespace", "-rs")
    assert code == 0, output
    assert "no runtime on device 'host'" in output
    assert "1 passed, 1 skipped" in output


def test_the_suite_runs_on_each_device_that_is_named(toy, project):
    toy.write(project / "phone.samespace")
    code, output = pytest_in(project, "-v", "--samespace-device", "host,ios-reference", "--samespace-artifact", "onnx-fp32")
    assert code != 0
    assert "nothing on device 'ios-reference' runs onnx-fp32" in output
    (project / "tests" / "test_more.py").write_text(
        "import pytest\n"
        "from samespace.sdk.errors import ConfigError\n"
        "def test_device(samespace_report):\n"
        "    assert samespace_report(device='host').device == 'host'\n"
        "    with pytest.raises(ConfigError, match='not checked on device .a53.'):\n"
        "        samespace_report(device='a53')\n"
    )
    code, output = pytest_in(project, "-v", "--samespace-device", "host", "--samespace-device", "host")
    assert code == 0, output
    assert output.count("samespace::onnx-fp32[onnx] PASSED") == 1
    code, output = pytest_in(project, "--samespace-device", "a99")
    assert code != 0
    assert "no device is called 'a99'" in output


@pytest.mark.parametrize("device", ["bgr@host", "locked@host"])
def test_a_device_with_a_fault_fails_its_tests_and_is_closed(toy, project, device):
    planted = runpy.run_path(str(Path(__file__).with_name("planted_devices.py")))
    site = planted["install"](project.parent / "site")
    toy.write(project / "phone.samespace", probes=toy.probe_set(mistakes=fingerprints(toy)))
    code, output = pytest_in(project, "-v", "--samespace-device", f"host,{device}", path=site)
    assert code != 0
    if device == "locked@host":
        assert "samespace devices install locked" in output
        return
    assert "samespace::onnx-fp32[onnx] PASSED" in output
    assert "samespace::onnx-fp32[onnx on bgr@host] FAILED" in output
    assert "FAIL: onnx-fp32 in onnx on bgr@host" in output
    assert "diagnosis: bgr" in output
    assert "--device bgr@host" in output
