"""The export formats by name. To add one: write its file in this folder, and its line here."""

from __future__ import annotations

import importlib

from samespace.export.formats.base import Conversion, Exporter, Precision
from samespace.sdk.errors import ConfigError

__all__ = ["EXPORTERS", "Conversion", "Exporter", "Precision", "exporter_class"]

#: Name -> "module:Class"; imported when used. The converters behind them load only in :meth:`Exporter.convert`.
EXPORTERS: dict[str, str] = {
    "onnx": "samespace.export.formats.onnx:OnnxExporter",
    "ort": "samespace.export.formats.ort:OrtExporter",
    "tflite": "samespace.export.formats.tflite:TfliteExporter",
    "coreml": "samespace.export.formats.coreml:CoremlExporter",
    "executorch": "samespace.export.formats.executorch:ExecutorchExporter",
}


def exporter_class(name: str) -> type[Exporter]:
    """The exporter's class.

    Raises:
        ConfigError: no format of that name; lists those there are.
    """
    if name not in EXPORTERS:
        raise ConfigError(f"no export format is called {name!r}; there are: {', '.join(EXPORTERS)}")
    module, _, attribute = EXPORTERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
