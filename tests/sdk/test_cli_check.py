"""``samespace check`` as a user runs it: exit codes, JSON, judging again, messages."""

import json
import shlex
import shutil

import numpy as np
import pytest

from samespace.sdk.bundle import artifact_id
from samespace.sdk.cli import main
from samespace.sdk.runtimes import registry
from samespace.sdk.signing import TrustStore


@pytest.fixture(autouse=True)
def trusting(toy, tmp_path, monkeypatch):
    """A configuration that trusts the toy's signer, and a folder of its own to work in."""
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))
    TrustStore.default().add(toy.signer.public, "toymaker")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """``run("check ...")`` -> (exit code, stdout, stderr)."""

    def invoke(command):
        with pytest.raises(SystemExit) as end:
            main(shlex.split(command))
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return invoke


def test_a_good_bundle_passes_and_the_printed_command_repeats_it(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace")
    code, out, _ = run("check toy.samespace")
    assert code == 0
    assert out.endswith("PASS: 1 of 1 checks passed\n")
    for word in ("golden tensors", "worst-1 % cosine", "neighbours kept", "R@1", "mAP", "TAR@FAR", "negative flips"):
        assert word in out
    command = next(line for line in out.splitlines() if line.startswith("again with: ")).removeprefix("again with: samespace ")
    assert run(command)[0] == 0


def test_a_bad_bundle_fails_and_says_why(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace", toy.graph(toy.edge, bgr=True))
    code, out, _ = run("check toy.samespace")
    assert code == 1
    assert "FAIL: 0 of 1 checks passed" in out
    assert "FAIL  cosine: worst-1 % cosine" in out


def test_an_artifact_that_gives_nan_fails(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace", toy.graph(toy.edge * np.nan))
    code, out, _ = run("check toy.samespace")
    assert code == 1
    assert "holds NaN" in out


def few_probes(toy):
    names = ("images", "golden", "reference", "cloud", "probe_labels")
    return toy.probe_set(**{name: getattr(toy.probe_set(), name)[:20] for name in names}, mistakes={})


def test_too_few_probes_are_inconclusive(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace", probes=few_probes(toy))
    code, out, _ = run("check toy.samespace")
    assert code == 3
    assert "INCONCLUSIVE  probes: only 20 probe images; 64 would decide" in out


def test_json_holds_reports_and_verdicts_and_can_be_judged_again(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace", toy.graph(toy.edge, noise=0.4))
    code, out, _ = run("check toy.samespace --json saved.json --seed 3")
    assert code == 1
    assert "R@1" in out
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert saved["outcome"] == "fail"
    (entry,) = saved["checks"]
    assert entry["report"]["settings"]["seed"] == 3
    assert entry["verdict"]["outcome"] == "fail"
    (tmp_path / "toy.samespace" / "manifest.json").unlink()
    code, out, _ = run("check --report saved.json --margin 100 --json -")
    assert code == 1
    again = json.loads(out)
    outcomes = {finding["check"]: finding["outcome"] for finding in again["checks"][0]["verdict"]["findings"]}
    assert outcomes["recall"] == "pass"
    assert again["checks"][0]["report"] == entry["report"]


def test_a_saved_report_is_judged_again_by_every_limit(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace", toy.graph(toy.edge, noise=0.05), precision="int8")
    run("check toy.samespace --json saved.json")
    loose = "--worst-cosine -1 --overlap 0 --margin 100 --hard-overlap 0 --hard-margin 100"
    code, out, _ = run(f"check --report saved.json {loose}")
    assert code == 0, out
    for limit in ("--worst-cosine 1", "--overlap 100", "--hard-overlap 100"):
        code, out, _ = run(f"check --report saved.json {loose} {limit}")
        assert code in (1, 3), limit
        assert {"--worst-cosine 1": "cosine:", "--overlap 100": "overlap:", "--hard-overlap 100": "hard overlap:"}[limit] in out
    report = json.loads((tmp_path / "saved.json").read_text())["checks"][0]["report"]
    cosine = report["embedding"]["worst_cosine"]
    assert run(f"check --report saved.json {loose} --worst-cosine {cosine + 1e-6}")[0] == 1
    assert run(f"check --report saved.json {loose} --worst-cosine {cosine - 1e-6}")[0] == 0
    # Across the interval of the overlap nothing is decided.
    middle = 100 * report["retrieval"]["overlap"]["value"]
    assert run(f"check --report saved.json {loose} --overlap {middle}")[0] == 3
    assert run("check --report saved.json --overlap 101")[0] == 2


def test_a_page_is_written_from_a_check_and_from_its_saved_report(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace", toy.graph(toy.edge, bgr=True))
    assert run("check toy.samespace --json saved.json --html deep/page.html")[0] == 1
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "data:image/png;base64," in page
    assert "failed" in page
    shutil.rmtree(tmp_path / "toy.samespace")
    assert run("check --report saved.json --html again.html")[0] == 1
    assert (tmp_path / "again.html").read_text() == page


def test_a_margin_decides_recall(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace", toy.graph(toy.edge, noise=0.4))
    for margin, outcome in ((0.5, "FAIL"), (100, "PASS")):
        out = run(f"check toy.samespace --margin {margin}")[1]
        assert f"{outcome:>12}  recall: " in out


def test_a_gallery_file_is_searched(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace")
    np.savez(tmp_path / "ours.npz", embeddings=toy.probe_set().gallery, labels=np.array(toy.gallery_labels))
    code, out, _ = run("check toy.samespace --gallery ours.npz")
    assert code == 0
    assert "ours.npz, 200 items" in out
    assert "--gallery ours.npz" in out
    np.savez(
        tmp_path / "theirs.npz", embeddings=toy.embed(toy.gallery_images, toy.stranger), labels=np.array(toy.gallery_labels)
    )
    code, out, _ = run("check toy.samespace --gallery theirs.npz")
    assert code == 1
    assert "of another space" in out


def test_nobody_at_the_gallerys_url(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace")
    code, _, err = run("check toy.samespace --gallery http://127.0.0.1:9")
    assert code == 1
    assert "http://127.0.0.1:9" in err


def test_a_strangers_bundle_needs_a_word_and_is_checked_all_the_same(toy, run, tmp_path):
    toy.write(tmp_path / "toy.samespace", signed=False)
    code, _, err = run("check toy.samespace")
    assert code == 1
    assert "--allow-unsigned" in err
    code, out, _ = run("check toy.samespace --allow-unsigned")
    assert code == 0
    assert "unsigned, not trusted" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere.samespace", "nowhere.samespace"),
        ("toy.samespace --artifact tflite", "onnx-fp32"),
        ("toy.samespace --runtime tensorrt", "no runtime is called 'tensorrt'"),
        ("toy.samespace --device toaster", "no device is called 'toaster'"),
        ("toy.samespace --gallery nowhere.npz", "nowhere.npz: no such gallery file"),
        ("--report nowhere.json", "nowhere.json: no such file"),
        ("--report broken.json", "broken.json: not JSON"),
        ("--report other.json", "other.json: not a compatibility report"),
        ("--report empty.json", "empty.json: holds no report"),
    ],
)
def test_what_cannot_be_checked_is_one_clear_line(toy, run, tmp_path, arguments, message):
    toy.write(tmp_path / "toy.samespace")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "empty.json").write_text('{"checks": []}')
    code, out, err = run(f"check {arguments}")
    assert code == 1
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.fixture
def two_formats(toy, tmp_path):
    """A bundle with a good ONNX artifact, and a TFLite one that is garbage."""
    onnx, _ = toy.artifact(b"")
    content = {"": b"no flatbuffer"}
    tflite = onnx.model_copy(update={"format": "tflite", "path": "artifacts/model.tflite", "artifact_id": artifact_id(content)})
    return toy.write(tmp_path / "toy.samespace", more_artifacts=[(tflite, content)])


def test_all_artifacts_are_checked_and_the_worst_counts(run, two_formats):
    code, out, _ = run("check toy.samespace")
    assert code == 1
    assert f"FAIL: 1 of {1 + len(registry.runtimes_for('tflite'))} checks passed" in out
    assert "PASS: onnx-fp32 in onnx on host" in out
    assert "FAIL: tflite-fp32 in tflite on host" in out
    assert run("check toy.samespace --artifact onnx")[0] == 0
    assert run("check toy.samespace --runtime onnx")[0] == 0
    assert run("check toy.samespace --artifact onnx-fp32 --artifact tflite-fp32 --runtime onnx --runtime tflite")[0] == 1
    code, _, err = run("check toy.samespace --artifact onnx --runtime tflite")
    assert code == 1
    assert "nothing to check" in err


def test_an_artifact_that_no_runtime_here_runs_is_said_or_refused(run, two_formats, monkeypatch):
    for name in registry.runtimes_for("tflite", installed_only=False):
        tflite = registry.runtime_class(name)
        monkeypatch.setattr(tflite, "unavailable", classmethod(lambda cls: "pip install 'samespace[tflite]'"))
    code, out, err = run("check toy.samespace")
    assert code == 0
    assert "PASS: 1 of 1 checks passed" in out
    assert "not checked: tflite-fp32" in err
    assert "samespace[tflite]" in err
    for command in ("check toy.samespace --artifact tflite", "check toy.samespace --runtime tflite"):
        code, _, err = run(command)
        assert code == 1
        assert "samespace[tflite]" in err


def test_bundle_or_report_is_needed(run):
    assert run("check")[0] == 2
    assert run("check a --report b")[0] == 2
