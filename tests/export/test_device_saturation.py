"""An int8 model that saturates on one processor only is caught there, named, and disabled there; the other goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from samespace.edge.devices.sysroot import sysroot
from samespace.export.formats.onnx import OnnxExporter
from samespace.export.formats.onnx_int8 import Scheme, to_int8
from samespace.export.options import ExportOptions
from samespace.sdk.bundle import Bundle
from samespace.sdk.check.device_process import Task
from samespace.sdk.check.matrix_run import check_devices
from samespace.sdk.device_evidence import device_evidence, write_device_evidence
from samespace.sdk.embedder import Embedder
from samespace.sdk.signing import SigningKey, TrustStore

pytestmark = [pytest.mark.devices, pytest.mark.export, pytest.mark.timeout(600)]

#: x86 without VNNI adds the products of pairs in 16 bits; ARM has room for them.
X86, ARM = "haswell", "a53"


@pytest.fixture(autouse=True)
def installed() -> None:
    for name in ("amd64", "arm64"):
        sysroot(name).install()


@pytest.fixture
def key(installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))
    key = SigningKey.new()
    TrustStore.default().add(key.public, "tests")
    return key


@pytest.fixture(scope="module")
def fp32(digits: Any) -> onnx.ModelProto:
    return onnx.load_model_from_string(OnnxExporter().convert(digits.graph, "fp32").files[""])


def test_saturation_on_one_processor_only(
    digits: Any, digits_bundle: Callable[..., Path], fp32: onnx.ModelProto, key: SigningKey, tmp_path: Path
) -> None:
    options = ExportOptions(calibration=digits.calibration)
    unsafe = to_int8(fp32, options, Scheme(reduce_range=False)).SerializeToString()
    models = {"fp32": fp32.SerializeToString(), "int8": unsafe}
    path = digits_bundle(tmp_path / "digits.samespace", key, models)
    check = check_devices(Task(path), [ARM, X86], runtimes=["onnx"])
    found = {(cell.device, cell.artifact): cell for cell in check.matrix.cells}
    for artifact in ("onnx-fp32", "onnx-int8"):
        assert found[ARM, artifact].outcome == "pass", check.checks
    assert found[X86, "onnx-fp32"].outcome == "pass"
    caught = found[X86, "onnx-int8"]
    assert caught.outcome == "fail"
    assert caught.worst_cosine is not None
    assert caught.worst_cosine < 0.98
    assert caught.diagnosis[0] == "int8_saturation"
    # Written into the bundle, obeyed on that processor, and nowhere else.
    write_device_evidence(path, check.matrix.cells, key)
    assert sum(bool(record.disabled) for record in device_evidence(Bundle.open(path))) == 1
    with Embedder.open(path, artifact="onnx-int8", device=ARM) as embedder:
        assert embedder.dim == 768
    with pytest.raises(Exception, match=rf"{X86}.*int8_saturation.*use onnx-fp32 in onnx instead"):
        Embedder.open(path, artifact="onnx-int8", device=X86)


def test_what_we_export_is_the_same_on_both(
    digits: Any, digits_bundle: Callable[..., Path], fp32: onnx.ModelProto, key: SigningKey, tmp_path: Path
) -> None:
    ours = to_int8(fp32, ExportOptions(calibration=digits.calibration), Scheme()).SerializeToString()
    path = digits_bundle(tmp_path / "digits.samespace", key, {"int8": ours})
    cells = check_devices(Task(path), [ARM, X86]).matrix.cells
    assert [cell.outcome for cell in cells] == ["pass", "pass"]
