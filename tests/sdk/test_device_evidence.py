"""Artifacts disabled per device: written by the check, signed, kept, and obeyed by the Embedder."""

from __future__ import annotations

import json
import logging
import shlex

import pytest

from samespace.sdk import Bundle, Embedder
from samespace.sdk.bundle import write_bundle
from samespace.sdk.check.device_process import Task
from samespace.sdk.check.matrix import Cell
from samespace.sdk.check.matrix_run import check_devices
from samespace.sdk.cli import main
from samespace.sdk.device_evidence import device_evidence, signer_for, write_device_evidence
from samespace.sdk.errors import BundleError, ConfigError, SignatureError
from samespace.sdk.signing import SigningKey, TrustStore, key_path


@pytest.fixture(autouse=True)
def place(toy, tmp_path, monkeypatch):
    """The toy's signer is this machine's, and trusted."""
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SAMESPACE_DEVICE", raising=False)
    TrustStore.default().add(toy.signer.public, "toymaker")
    toy.signer.save(key_path())
    monkeypatch.chdir(tmp_path)


def broken(toy, path):
    """fp32 is another model, int8 is good."""
    return toy.write(path, toy.graph(toy.edge, noise=0.4), more_artifacts=[toy.artifact(toy.graph(toy.edge), "int8")])


def cell(artifact: str, device: str, outcome: str | None = "fail", **more: object) -> Cell:
    state = "measured" if outcome else "failed"
    return Cell(device=device, artifact=artifact, runtime="onnx", state=state, outcome=outcome, **more)


def check(command: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(shlex.split(command))
    return end.value.code or 0


def test_the_check_disables_what_fails_and_the_embedder_obeys(toy, tmp_path, capsys, monkeypatch):
    path = broken(toy, tmp_path / "toy.samespace")
    before = Bundle.open(path)
    assert check("check toy.samespace --device host --disable") == 1
    out = capsys.readouterr().out
    assert "disabled on host: onnx-fp32 in onnx: failed its check" in out
    bundle = Bundle.open(path)
    assert bundle.trusted
    assert (bundle.manifest.model_id, bundle.manifest.space_id) == (before.manifest.model_id, before.manifest.space_id)
    assert bundle.artifacts == before.artifacts
    assert bundle.manifest.gates == before.manifest.gates
    records = {record.artifact: record for record in device_evidence(bundle)}
    assert records["onnx-int8"].disabled == ""
    assert records["onnx-int8"].outcome == "pass"
    assert len(records["onnx-fp32"].embeddings_sha256) == 64
    # Chosen automatically: the first that is not disabled. Asked for: an error that names device, reason and what to do.
    for choice in ({"device": "host"}, {"device": None}):
        monkeypatch.setenv("SAMESPACE_DEVICE", "host")
        with Embedder.open(path, **choice) as embedder:
            assert embedder.artifact_id == bundle.artifact("onnx-int8").spec.artifact_id
        with pytest.raises(ConfigError) as error:
            Embedder.open(path, artifact="onnx-fp32", **choice)
        for word in (
            "device 'host'",
            "onnx-fp32 in onnx: failed its check",
            "worst-1 % cosine",
            "use onnx-int8 in onnx instead",
        ):
            assert word in str(error.value)
    # Nowhere else, and not in a check.
    for device in ("", "a53"):
        with Embedder.open(path, device=device) as embedder:
            assert embedder.artifact_id == bundle.artifact("onnx-fp32").spec.artifact_id
    assert {cell.artifact for cell in check_devices(Task(path), ["host"]).matrix.cells} == {"onnx-fp32", "onnx-int8"}


def test_a_device_that_was_never_checked_is_warned_of(toy, tmp_path, caplog):
    path = broken(toy, tmp_path / "toy.samespace")
    with caplog.at_level(logging.WARNING), Embedder.open(path, device="a53"):
        assert "never checked" not in caplog.text  # nobody checked any device
    write_device_evidence(path, [cell("onnx-fp32", "a53")], toy.signer)
    with caplog.at_level(logging.WARNING), Embedder.open(path, device="a35"):
        assert "never checked on the device 'a35'" in caplog.text
        assert "checked on: a53" in caplog.text


def test_where_everything_is_disabled_nothing_is_opened(toy, tmp_path):
    path = broken(toy, tmp_path / "toy.samespace")
    write_device_evidence(path, [cell(name, "a53", why="out of memory") for name in ("onnx-fp32", "onnx-int8")], toy.signer)
    with pytest.raises(ConfigError, match=r"out of memory.*nothing else in the bundle runs here"):
        Embedder.open(path, device="a53")


def test_records_are_kept_device_by_device_and_a_pass_takes_back(toy, tmp_path):
    path = broken(toy, tmp_path / "toy.samespace")
    write_device_evidence(path, [cell("onnx-fp32", "a53"), cell("onnx-fp32", "a76")], toy.signer)
    lines = write_device_evidence(
        path,
        [cell("onnx-fp32", "a53", "pass"), cell("onnx-fp32", "a76", None), cell("onnx-int8", "a76", "inconclusive")],
        toy.signer,
    )
    found = {(one.device, one.artifact): bool(one.disabled) for one in device_evidence(Bundle.open(path))}
    # A device that failed says nothing of the artifact; what is inconclusive is not disabled.
    assert found == {("a53", "onnx-fp32"): False, ("a76", "onnx-fp32"): True, ("a76", "onnx-int8"): False}
    assert [line for line in lines if line.startswith("disabled on a76: onnx-fp32")]


def test_evidence_of_other_kinds_stays_and_a_zip_stays_a_zip(toy, tmp_path):
    other = [{"kind": "export", "model": "toy"}, {"query": "cloud"}]
    path = tmp_path / "toy.samespace.zip"
    write_bundle(
        path,
        model=toy.model,
        space=toy.space,
        artifacts=[toy.artifact(toy.graph(toy.edge))],
        files={**toy.probe_set().to_files(), "evidence.json": json.dumps(other).encode()},
        signer=toy.signer,
    )
    write_device_evidence(path, [cell("onnx-fp32", "a53")], toy.signer)
    bundle = Bundle.open(path)
    assert path.is_file()
    assert json.loads(bundle.read("evidence.json"))[:2] == other
    assert len(device_evidence(bundle)) == 1


def test_a_record_of_another_artifact_of_the_same_name_counts_for_nothing(toy, tmp_path):
    path = broken(toy, tmp_path / "toy.samespace")
    write_device_evidence(path, [cell("onnx-fp32", "a53")], toy.signer)
    evidence = Bundle.open(path).read("evidence.json")
    newer = tmp_path / "newer.samespace"
    write_bundle(
        newer,
        model=toy.model,
        space=toy.space,
        artifacts=[toy.artifact(toy.graph(toy.edge))],
        files={**toy.probe_set().to_files(), "evidence.json": evidence},
        signer=toy.signer,
    )
    assert device_evidence(Bundle.open(newer)) == ()
    with Embedder.open(newer, artifact="onnx-fp32", device="a53") as embedder:
        assert embedder.dim == toy.dim


@pytest.mark.parametrize(
    ("evidence", "said"),
    [(b"{}", "no list"), (b"[", "cannot be read"), (b'[{"kind": "device"}]', "device: Field required")],
)
def test_damaged_evidence_is_refused_where_it_counts(toy, tmp_path, evidence, said):
    path = tmp_path / "toy.samespace"
    write_bundle(
        path,
        model=toy.model,
        space=toy.space,
        artifacts=[toy.artifact(toy.graph(toy.edge))],
        files={**toy.probe_set().to_files(), "evidence.json": evidence},
        signer=toy.signer,
    )
    with pytest.raises(BundleError, match=said):
        Embedder.open(path, device="a53")


def test_nobody_signs_what_he_cannot_vouch_for(toy, tmp_path, capsys):
    path = broken(toy, tmp_path / "toy.samespace")
    before = (path / "manifest.json").read_bytes()
    key_path().unlink()
    with pytest.raises(ConfigError, match="no key to sign"):
        signer_for(path)
    # Told before anything is measured, and nothing is written.
    assert check("check toy.samespace --disable") == 1
    captured = capsys.readouterr()
    assert "no key to sign" in captured.err.replace("\n", " ")
    assert captured.out == ""
    SigningKey.new().save(tmp_path / "other.pem")
    assert signer_for(path, tmp_path / "other.pem") is not None
    TrustStore.default().remove(toy.signer.key_id)
    with pytest.raises(SignatureError, match="not trusted"):
        signer_for(path)
    with pytest.raises(ConfigError, match="would vouch for it"):
        signer_for(path, tmp_path / "other.pem", allow_unsigned=True)
    assert (path / "manifest.json").read_bytes() == before
    assert check("check toy.samespace --key other.pem") == 2


def test_an_unsigned_bundle_stays_unsigned(toy, tmp_path):
    path = toy.write(tmp_path / "toy.samespace", signed=False)
    assert signer_for(path, allow_unsigned=True) is None
    write_device_evidence(path, [cell("onnx-fp32", "a53")], None, allow_unsigned=True)
    assert Bundle.open(path, allow_unsigned=True).signer is None
    with pytest.raises(ConfigError, match="disabled on the device 'a53'"):
        Embedder.open(path, device="a53", allow_unsigned=True)
