"""An int8 model that saturates on one processor only is caught there, named, and disabled there; the other goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

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

#: Two processors: one adds the products of pairs in 16 bits (x86 without VNNI), the other has room for them. Both are computed
#: with ordinary operators, so that neither depends on the processor of this machine.
PROCESSORS = """
import onnx

from samespace.export.pair_sums import clipped_graph, layers_that_may_clip
from samespace.sdk.devices import DeviceRun
from samespace.sdk.runtimes.onnx import open_session


def names():
    return ("exact", "x86-without-vnni")


def open_device(name):
    return Processor(name)


class Processor:
    def __init__(self, name):
        self.name = name

    def runtimes(self, format):
        return ("onnx",) if format == "onnx" else ()

    def embed(self, bundle, artifact, runtime, images, options):
        tensors = bundle.manifest.model.preprocess.batch(images)
        model = onnx.load_model_from_string(bundle.artifact(artifact).single_file)
        layers = layers_that_may_clip(model)
        if self.name == "x86-without-vnni" and layers:
            model = clipped_graph(model, layers)
        session = open_session(model.SerializeToString(), artifact, optimise=False)
        return DeviceRun(tensors, session.run(["embedding"], {"image": tensors})[0], "computed")

    def close(self):
        pass
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    site = tmp_path / "site"
    about = site / "processors-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "processors.py").write_text(PROCESSORS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: processors\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[samespace.devices]\nprocessors = processors\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    key = SigningKey.new()
    TrustStore.default().add(key.public, "tests")
    return key


def test_saturation_on_one_processor_only(
    digits: Any, digits_bundle: Callable[..., Path], place: SigningKey, tmp_path: Path
) -> None:
    fp32 = onnx.load_model_from_string(OnnxExporter().convert(digits.graph, "fp32").files[""])
    options = ExportOptions(calibration=digits.calibration)
    unsafe = to_int8(fp32, options, Scheme(reduce_range=False)).SerializeToString()
    path = digits_bundle(tmp_path / "digits.samespace", place, {"fp32": fp32.SerializeToString(), "int8": unsafe})
    check = check_devices(Task(path), ["exact", "x86-without-vnni"])
    found = {(cell.device, cell.artifact): cell for cell in check.matrix.cells}
    for artifact in ("onnx-fp32", "onnx-int8"):
        assert found["exact", artifact].outcome == "pass", check.checks
    assert found["x86-without-vnni", "onnx-fp32"].outcome == "pass"
    caught = found["x86-without-vnni", "onnx-int8"]
    assert caught.outcome == "fail"
    assert caught.worst_cosine is not None
    assert caught.worst_cosine < 0.98
    assert caught.diagnosis[0] == "int8_saturation"
    assert caught.host is not None
    assert caught.host.within or caught.host.left == "device"  # this machine may be such a processor itself
    # Written into the bundle, obeyed on that processor, and nowhere else.
    write_device_evidence(path, check.matrix.cells, place)
    assert sum(bool(record.disabled) for record in device_evidence(Bundle.open(path))) == 1
    with Embedder.open(path, artifact="onnx-int8", device="exact") as embedder:
        assert embedder.dim == 768
    with pytest.raises(Exception, match=r"x86-without-vnni.*int8_saturation.*use onnx-fp32 in onnx instead"):
        Embedder.open(path, artifact="onnx-int8", device="x86-without-vnni")
