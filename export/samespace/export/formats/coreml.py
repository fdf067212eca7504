"""Core ML, by coremltools: an ML Program whose input is an RGB image.

fp16 and fp32 say in what the program computes. int8, palette6 and palette4 compute in fp16 and keep the weights smaller: as
integers with a scale for each output channel, or as indices into tables (from iOS 18 on one for each group of channels).
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from samespace.export.formats.base import Conversion, Precision
from samespace.export.formats.coreml_palette import group_size, table_maker
from samespace.export.graph import DeviceGraph
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.sdk.errors import ConfigError, MissingExtraError
from samespace.sdk.manifest import TensorSpec

__all__ = ["CoremlExporter"]

_PROGRAM = "Data/com.apple.CoreML/model.mlmodel"
_TARGETS = (16, 17, 18)
#: The first iOS that knows tables for groups of channels.
_GROUPS_SINCE = 18
_PALETTE_BITS: Mapping[Precision, int] = {"palette6": 6, "palette4": 4}
#: Weights of at most this many elements stay as they are: coremltools leaves 2048, which would be a third of a small model.
_SMALL = 512


class CoremlExporter:
    """An ``.mlpackage`` folder. Core ML hands the program ``(1, 3, size, size)`` values 0-255 of the image."""

    format: ClassVar[Literal["coreml"]] = "coreml"
    suffix: ClassVar[str] = ".mlpackage"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "fp32", "int8", "palette6", "palette4")

    def convert(self, graph: DeviceGraph, precision: Precision, options: ExportOptions = DEFAULT_OPTIONS) -> Conversion:
        """Convert.

        Args:
            graph: what the device runs.
            precision: one of :attr:`precisions`.
            options: ``min_ios`` is the deployment target; ``float_layers`` are names of weights that are not compressed.

        Raises:
            ConfigError: no such deployment target, or no such weight; lists those there are.
            MissingExtraError: coremltools is not installed.
        """
        if options.min_ios not in _TARGETS:
            raise ConfigError(
                f"Core ML artifacts are not made for iOS {options.min_ios} as the oldest; min_ios may be "
                f"{', '.join(map(str, _TARGETS))}"
            )
        try:
            import coremltools as ct
        except ImportError:
            raise MissingExtraError("export", "exporting to Core ML") from None
        graph = graph.with_layout("nchw")
        example = graph.example(1, torch.float32)
        target = f"iOS{options.min_ios}"
        model: Any = ct.convert(
            torch.jit.trace(graph, example),
            inputs=[ct.ImageType(name="image", shape=tuple(example.shape), color_layout=ct.colorlayout.RGB)],
            outputs=[ct.TensorType(name="embedding", dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            skip_model_load=True,
        )
        model, compression = _compressed(model, precision, options)
        return Conversion(
            files=_steady_files(model),
            input=TensorSpec(name="image", dtype="image", layout="nhwc", dynamic_batch=False),
            output="embedding",
            recipe={
                "exporter": "coremltools jit.trace",
                "coremltools": ct.__version__,
                "torch": torch.__version__,
                "target": target,
                "compute": "fp32" if precision == "fp32" else "fp16",
                **compression,
            },
            min_runtime=target,
        )


def _compressed(model: Any, precision: Precision, options: ExportOptions) -> tuple[Any, dict[str, Any]]:
    """The model with smaller weights, and what the recipe says of them; the same model for fp16 and fp32."""
    if precision in ("fp16", "fp32"):
        return model, {}
    import coremltools.optimize.coreml

    cto: Any = coremltools.optimize.coreml  # its types are those of single values where it takes dictionaries
    weights = {
        name: about.val.shape
        for name, about in cto.get_weights_metadata(model, weight_threshold=_SMALL).items()
        if about.val.ndim > 1
    }
    if unknown := [name for name in options.float_layers if name not in weights]:
        raise ConfigError(f"float_layers: no weight is called {unknown[0]!r}; there are: {', '.join(weights)}")
    left = dict.fromkeys(options.float_layers)
    about: dict[str, Any] = {"compressed": len(weights) - len(left), "left_in_float": sorted(left), "more_than": _SMALL}
    if precision == "int8":
        config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", granularity="per_channel", weight_threshold=_SMALL)
        model = cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config, op_name_configs=left))
        return model, {"weights": "linear_symmetric per_channel", "bits": 8, **about}
    bits = _PALETTE_BITS[precision]
    grouped = options.min_ios >= _GROUPS_SINCE
    groups = {
        name: size
        for name, shape in weights.items()
        if grouped and name not in left and (size := group_size(shape, bits)) < shape[0]
    }
    common = {"mode": "custom", "lut_function": table_maker(bits), "weight_threshold": _SMALL}
    named = left | {
        name: cto.OpPalettizerConfig(**common, granularity="per_grouped_channel", group_size=size, channel_axis=0)
        for name, size in groups.items()
    }
    config = cto.OpPalettizerConfig(**common)
    model = cto.palettize_weights(model, cto.OptimizationConfig(global_config=config, op_name_configs=named))
    # A weight that is not named in the groups has one table.
    return model, {"weights": "palettised by k-means", "bits": bits, "group_sizes": groups, **about}


def _steady_files(model: Any) -> dict[str, bytes]:
    """The files of the package, the same ones for the same model."""
    with tempfile.TemporaryDirectory(prefix="samespace-coreml-") as folder:
        package = Path(folder) / "model.mlpackage"
        model.save(str(package))
        files = {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*") if path.is_file()}
    files["Manifest.json"] = _with_steady_ids(files["Manifest.json"])
    files[_PROGRAM] = _with_steady_order(files[_PROGRAM])
    return dict(sorted(files.items()))


def _with_steady_order(program: bytes) -> bytes:
    """The same message with its maps in order of their keys: written as they come, they differ from process to process."""
    from coremltools.proto import Model_pb2

    message: Any = Model_pb2.Model()
    message.ParseFromString(program)
    return message.SerializeToString(deterministic=True)


def _with_steady_ids(manifest: bytes) -> bytes:
    """Items of the package get ids made from their paths instead of random ones, so that equal models give equal packages."""
    content = json.loads(manifest)
    ids = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, item["path"])).upper() for old, item in content["itemInfoEntries"].items()}
    content["itemInfoEntries"] = {ids[old]: item for old, item in content["itemInfoEntries"].items()}
    content["rootModelIdentifier"] = ids[content["rootModelIdentifier"]]
    return json.dumps(content, indent=4, sort_keys=True).encode()
