"""ORT artifacts, onnxruntime's flat format for mobile builds, by the same onnxruntime as ONNX artifacts."""

from __future__ import annotations

from typing import ClassVar, Literal

from samespace.sdk.runtimes.onnx import OnnxRuntime

__all__ = ["OrtRuntime"]


class OrtRuntime(OnnxRuntime):
    """Runs a ``.ort`` artifact from its verified bytes, with the fusions that its exporter kept beside the graph."""

    name: ClassVar[str] = "ort"
    format: ClassVar[str] = "ort"
    stored_as: ClassVar[Literal["ONNX", "ORT"]] = "ORT"
