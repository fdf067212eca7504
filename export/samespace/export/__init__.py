"""From a trained torch model to verified bundles: ONNX, TFLite, Core ML."""

from samespace.export.bundle import Exported, export_run
from samespace.export.graph import DeviceGraph
from samespace.export.run import Run, RunModel, load_model, read_run
from samespace.export.torch_runtime import TorchRuntime
from samespace.export.verify import Agreement, verify

__all__ = [
    "Agreement",
    "DeviceGraph",
    "Exported",
    "Run",
    "RunModel",
    "TorchRuntime",
    "export_run",
    "load_model",
    "read_run",
    "verify",
]
