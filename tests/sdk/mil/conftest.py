"""Packages made by coremltools, and what the evaluator makes of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.runtimes import LoadedArtifact
from samespace.sdk.runtimes.mil.program import read_package
from samespace.sdk.runtimes.mil.translate import translate
from samespace.sdk.runtimes.onnx import open_session

#: What the programs of :meth:`Mil.package` take.
SHAPE = (2, 4, 6, 7)


class Mil:
    """Builds small programs; coremltools is imported when it is needed, so that without it the tests are skipped."""

    def __init__(self) -> None:
        self.ct = pytest.importorskip("coremltools")
        self.types = self.ct.converters.mil.mil.types

    def convert(self, program: Any, *, target: Any = None, precision: Any = None) -> Any:
        """A built program as an MLModel, as it was written; with fp16 arithmetic where that is asked for."""
        pipeline = self.ct.PassPipeline.EMPTY
        if precision == self.ct.precision.FLOAT16:
            for name in ("add_fp16_cast", "cast_optimization", "const_elimination", "dead_code_elimination"):
                pipeline.append_pass(f"common::{name}")
        return self.ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=target or self.ct.target.iOS17,
            pass_pipeline=pipeline,
            compute_precision=precision or self.ct.precision.FLOAT32,
            skip_model_load=True,
        )

    def package(
        self,
        build: Callable[[Any], list[Any]],
        *,
        dtype: Any = None,
        precision: Any = None,
        folder: Path | None = None,
        shape: tuple[int, ...] = SHAPE,
    ) -> dict[str, bytes]:
        """The files of a package whose program is ``build(x)``."""
        mb = self.ct.converters.mil.Builder

        @mb.program(input_specs=[mb.TensorSpec(shape, dtype=dtype or self.types.fp32)], opset_version=self.ct.target.iOS17)
        def program(x: Any) -> Any:
            return tuple(build(x))

        return self.saved(self.convert(program, precision=precision), folder)

    def saved(self, model: Any, folder: Path | None = None) -> dict[str, bytes]:
        """The files of an MLModel's package; left at ``folder/model.mlpackage`` where a folder is given."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(folder or temporary) / "model.mlpackage"
            model.save(str(path))
            return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}

    def evaluate(self, files: dict[str, bytes], x: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs for the input ``x``."""
        session = open_session(translate(read_package(files)), "model")
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"x": x}), strict=True))

    def artifact(
        self,
        files: dict[str, bytes],
        *,
        input_name: str = "image",
        output: str = "embedding",
        dtype: Any = "image",
        layout: Any = "nhwc",
        size: int = 8,
        dim: int = 4,
        dynamic: bool = False,
    ) -> LoadedArtifact:
        """The files as an artifact of a bundle."""
        spec = Artifact(
            path="artifacts/model.mlpackage",
            format="coreml",
            precision="fp16",
            artifact_id="0" * 64,
            input=TensorSpec(name=input_name, dtype=dtype, layout=layout, dynamic_batch=dynamic),
            output=output,
            recipe={},
            min_runtime="iOS17",
        )
        return LoadedArtifact(spec, files, size, dim)


@pytest.fixture(scope="session")
def mil() -> Mil:
    return Mil()


@pytest.fixture(scope="session")
def image_package(mil: Mil) -> dict[str, bytes]:
    """A small network with an image input ``(8, 8)`` and an embedding ``(4,)``, in fp16 for iOS 18: one weight in groups of
    tables, one as integers, one as it was."""
    torch, ct = pytest.importorskip("torch"), mil.ct
    import coremltools.optimize.coreml as cto

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU6(),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4),
        ).eval()  # fmt: skip
    model = ct.convert(
        torch.jit.trace(net, torch.zeros(1, 3, 8, 8)),
        inputs=[ct.ImageType(name="image", shape=(1, 3, 8, 8), color_layout=ct.colorlayout.RGB, scale=1 / 255)],
        outputs=[ct.TensorType(name="embedding", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    weights = cto.get_weights_metadata(model, weight_threshold=0)
    first, second, _ = (name for name, about in weights.items() if about.val.ndim > 1)
    tables = cto.OpPalettizerConfig(
        mode="uniform", nbits=4, granularity="per_grouped_channel", group_size=4, weight_threshold=0
    )
    model = cto.palettize_weights(model, cto.OptimizationConfig(op_name_configs={second: tables}))
    integers = cto.OpLinearQuantizerConfig(mode="linear", weight_threshold=0)
    return mil.saved(cto.linear_quantize_weights(model, cto.OptimizationConfig(op_name_configs={first: integers})))
