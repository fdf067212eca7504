"""ExecuTorch, lowered to XNNPACK: uint8 NHWC input, a fixed batch of 1; in fp32 and static int8.

It is converted in a child process with an environment of its own, the one of :mod:`samespace.sdk.runtimes.executorch`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from samespace.export.formats.base import Conversion, Precision
from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.errors import ConfigError, ExportError
from samespace.sdk.manifest import TensorSpec
from samespace.sdk.runtimes.child import ChildFailed, ChildRefused, ServingChild
from samespace.sdk.runtimes.executorch import EXECUTORCH

__all__ = ["ExecutorchExporter"]

_SCRIPT = Path(__file__).with_name("executorch_child.py")
#: Wall-clock seconds for one conversion, start and imports included.
_SECONDS = 900.0


class ExecutorchExporter:
    """One ``.pte`` file. int8 leaves scaling and L2 norm in float; single layers cannot be left out."""

    format: ClassVar[Literal["executorch"]] = "executorch"
    suffix: ClassVar[str] = ".pte"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        graph = graph.with_layout("nhwc")
        pictures = options.calibration
        if precision == "int8" and (pictures is None or not len(pictures)):
            raise ConfigError("ExecuTorch's static int8 needs calibration pictures, and there are none: train the run again")
        if options.float_layers:
            raise ConfigError(f"ExecuTorch's int8 leaves no single layers in float, so not {', '.join(options.float_layers)}")
        calibration = pictures if precision == "int8" and pictures is not None else torch.empty(0, dtype=torch.uint8).numpy()
        child = ServingChild(EXECUTORCH.command(_SCRIPT))
        try:
            answer, (program,) = child.ask(
                {"precision": precision, "shape": calibration.shape},
                [*_archives(graph), calibration.tobytes()],
                seconds=_SECONDS,
            )
        except (ChildRefused, ChildFailed) as error:
            raise ExportError(f"ExecuTorch could not lower the model: {error}") from None
        finally:
            child.close()
        recipe = {"exporter": "executorch XNNPACK", **answer["versions"]}
        if precision == "int8":
            recipe |= {"quantiser": "PT2E XNNPACKQuantizer, per channel", "calibration": len(calibration)}
        return Conversion(
            files={"": program},
            input=TensorSpec(name="image", dtype="uint8", layout="nhwc", dynamic_batch=False),
            output="embedding",
            recipe=recipe,
            min_runtime=f"ExecuTorch {answer['versions']['executorch']}",
        )


def _archives(graph: DeviceGraph) -> list[bytes]:
    """What stands before the model, the model, and the L2 norm, so that the middle alone is quantised."""
    image = graph.example(1, torch.uint8)
    scaled = _Before(graph)(image)
    steps = ((_Before(graph), image), (graph.model, scaled), (graph.norm, graph.model(scaled)))
    archives = []
    for module, example in steps:
        archive = io.BytesIO()
        torch.export.save(torch.export.export(module.eval(), (example,)), archive)
        archives.append(archive.getvalue())
    return archives


class _Before(nn.Module):
    """Pixels to what the model takes."""

    scale: Tensor
    shift: Tensor

    def __init__(self, graph: DeviceGraph) -> None:
        super().__init__()
        self.register_buffer("scale", graph.scale)
        self.register_buffer("shift", graph.shift)

    def forward(self, image: Tensor) -> Tensor:
        return image.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.shift
