"""What an exporter can do so that single layers stay in float."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from samespace.export.options import ExportOptions

__all__ = ["LayerQuantiser"]


@runtime_checkable
class LayerQuantiser(Protocol):
    """An exporter whose static int8 can leave layers in float. Same bytes and options give the same bytes."""

    def layers(self, fp32: bytes) -> tuple[str, ...]:
        """Names of the layers that int8 can leave in float, in the order of the graph.

        Args:
            fp32: an artifact of this exporter.
        """
        ...

    def quantise(self, fp32: bytes, options: ExportOptions) -> bytes:
        """The fp32 artifact as static int8; ``options.float_layers`` and the L2 norm stay in float.

        Args:
            fp32: an artifact of this exporter.
            options: with calibration pictures.
        """
        ...
