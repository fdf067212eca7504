"""Faults of runtimes and processors, planted with the real ones: tflite-runtime 2.14, onnxruntime on an x86 without VNNI."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from cases import Case
from torch import nn
from world import Subject, written

from samespace.export import Run
from samespace.export.formats import exporter_class
from samespace.export.formats.base import artifact_of
from samespace.export.graph import DeviceGraph
from samespace.export.mistakes import fingerprints
from samespace.export.torch_runtime import embed
from samespace.sdk.bundle import Bundle, artifact_id

__all__ = ["misread", "saturated"]

#: Run in a child, under the emulator: a model, its input and its output as files.
_CHILD = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 4
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images, name = numpy.load(sys.argv[2]), session.get_inputs()[0].name
rows = [session.run(None, {name: images[i : i + 8]})[0] for i in range(0, len(images), 8)]
numpy.save(sys.argv[3], numpy.concatenate(rows))
"""
_WITHOUT_VNNI = "Haswell"


class _Projected(nn.Module):
    """A model with one more fully connected layer, whose channels differ in scale as trained ones do."""

    def __init__(self, model: nn.Module, dim: int) -> None:
        super().__init__()
        self.model, self.project = model, nn.Linear(dim, dim)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.project.weight.data = torch.randn(dim, dim) / dim**0.5 * torch.exp(0.3 * torch.randn(dim, 1))
            self.project.bias.data = 0.1 * torch.randn(dim)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.project(self.model(image))


def misread(subject: Subject, run: Run, folder: Path) -> Iterator[tuple[Bundle, str, Case]]:
    """Dynamic int8 with per-channel FULLY_CONNECTED in tflite-runtime 2.14; nothing where that is not installed."""
    try:
        from ai_edge_quantizer import quantizer, recipe
        from tflite_runtime.interpreter import Interpreter
    except ImportError:
        return
    record = subject.model.record.model_copy(update={"preprocess": subject.preprocess})
    network = _Projected(subject.model.build(), record.dim).eval()
    exporter = exporter_class("tflite")
    conversion = exporter().convert(DeviceGraph(network, record.preprocess), "fp32")
    plain, small = folder / "plain.tflite", folder / "small.tflite"
    plain.write_bytes(conversion.files[""])
    quantised = quantizer.Quantizer(str(plain))
    quantised.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    quantised.quantize().export_model(str(small), overwrite=True)
    files = {"": small.read_bytes()}
    spec = artifact_of(conversion, exporter, "int8-dynamic", artifact_id(files))
    golden = subject.probes.golden
    probes = subject.with_references(
        embed(network, record, golden), fingerprints(network, record, subject.probes.images, golden)
    )
    bundle = written(folder / f"{subject.name.replace('/', '-')}-misread", (record, run), probes, [(spec, files)])
    interpreter = Interpreter(model_path=str(small))
    interpreter.allocate_tensors()
    into, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for image in golden:
        interpreter.set_tensor(into["index"], image[None].astype(into["dtype"]))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(out["index"])[0])
    expected = frozenset({"fc_garbage"})
    yield bundle, spec.path, Case("model", subject.name, "int8-dynamic", "tflite-runtime 2.14", expected, np.array(rows))


def saturated(subject: Subject, run: Run, folder: Path, emulator: str | None) -> Iterator[tuple[Bundle, str, Case]]:
    """Static int8 with weights of 8 bits on a processor without VNNI: this one, or an emulated one; else nothing."""
    if emulator is None and _has_vnni():
        return
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    conversion = exporter_class("onnx")().convert(DeviceGraph(subject.model.build(), subject.model.record.preprocess), "fp32")
    plain, small, inputs, outputs = (folder / name for name in ("plain.onnx", "small.onnx", "in.npy", "out.npy"))
    plain.write_bytes(conversion.files[""])
    nodes = list(onnx.load(plain).graph.node)
    last = max(place for place, node in enumerate(nodes) if node.op_type in ("Conv", "Gemm", "MatMul"))
    quantize_static(
        plain,
        small,
        _Reader(subject.probes.golden),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=[node.name for node in nodes[last + 1 :]],
    )
    np.save(inputs, subject.probes.golden)
    command = [sys.executable, "-c", _CHILD, str(small), str(inputs), str(outputs)]
    prefix = [] if emulator is None else [emulator, "-cpu", _WITHOUT_VNNI]
    subprocess.run([*prefix, *command], check=True, capture_output=True, env=os.environ | {"ORT_DISABLE_TELEMETRY": "1"})
    files = {"": small.read_bytes()}
    spec = artifact_of(conversion, exporter_class("onnx"), "int8", artifact_id(files))
    record = subject.bundle.manifest.model
    bundle = written(folder / f"{subject.name.replace('/', '-')}-saturated", (record, run), subject.probes, [(spec, files)])
    expected = frozenset({"int8_saturation"})
    yield bundle, spec.path, Case("model", subject.name, "int8", "8-bit weights without VNNI", expected, np.load(outputs))


class _Reader:
    """Calibration pictures, one at a time."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._left = iter({"image": picture[None]} for picture in pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def _has_vnni() -> bool:
    cpu = Path("/proc/cpuinfo")
    return not cpu.exists() or "vnni" in cpu.read_text()
