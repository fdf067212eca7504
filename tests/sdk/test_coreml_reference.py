"""The Core ML evaluator against torch and NumPy, operator by operator, and against coremltools' own reader of packages."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.manifest import Artifact, TensorSpec
from samespace.sdk.runtimes import LoadedArtifact, open_runtime
from samespace.sdk.runtimes.mil.decompress import DECOMPRESSORS
from samespace.sdk.runtimes.mil.graph import UnsupportedError
from samespace.sdk.runtimes.mil.program import Operation, Program, TensorType, read_package
from samespace.sdk.runtimes.mil.translate import OPERATORS, translate
from samespace.sdk.runtimes.mil.wire import Field, decode
from samespace.sdk.runtimes.onnx import open_session

ct = pytest.importorskip("coremltools")
torch = pytest.importorskip("torch")
mb = ct.converters.mil.Builder
types = ct.converters.mil.mil.types
F = torch.nn.functional

RNG = np.random.default_rng(7)
X = RNG.normal(0, 2, (2, 4, 6, 7)).astype(np.float32)
W = RNG.normal(0, 1, (8, 2, 3, 3)).astype(np.float32)
B = RNG.normal(0, 1, 8).astype(np.float32)
LINEAR = RNG.normal(0, 1, (5, 7)).astype(np.float32)
V4, P4 = RNG.normal(0, 1, 4).astype(np.float32), RNG.uniform(0.5, 2, 4).astype(np.float32)
G7 = RNG.normal(0, 1, 7).astype(np.float32)
G46 = RNG.normal(0, 1, (4, 6)).astype(np.float32)
Q = np.float32(0.05)

Build = Callable[[Any], Any]
Reference = Callable[[Any], Any]

#: name -> (how coremltools builds it from x, how torch computes it). All go into one program: conversion is the slow part.
CASES: dict[str, tuple[Build, Reference]] = {
    "abs": (lambda x: mb.abs(x=x), torch.abs),
    "add": (lambda x: mb.add(x=x, y=V4.reshape(4, 1, 1)), lambda x: x + torch.tensor(V4).reshape(4, 1, 1)),
    "avg_pool": (
        lambda x: mb.avg_pool(x=x, kernel_sizes=[3, 2], strides=[2, 1], pad_type="custom", pad=[1, 1, 0, 0]),
        lambda x: F.avg_pool2d(x, (3, 2), (2, 1), (1, 0)),
    ),
    "avg_pool_without_padding": (
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1], exclude_padding_from_average=True
        ),
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    ),
    "batch_norm": (
        lambda x: mb.batch_norm(x=x, mean=V4, variance=P4, gamma=P4, beta=V4, epsilon=np.float32(1e-3)),
        lambda x: F.batch_norm(x, *(torch.tensor(v) for v in (V4, P4, P4, V4)), eps=1e-3),
    ),
    "cast": (lambda x: mb.cast(x=mb.cast(x=x, dtype="int32"), dtype="fp32"), lambda x: x.to(torch.int32).float()),
    "ceil": (lambda x: mb.ceil(x=x), torch.ceil),
    "clamped_relu": (
        lambda x: mb.clamped_relu(x=x, alpha=np.float32(0.3), beta=np.float32(1.5)),
        lambda x: F.leaky_relu(x, 0.3).clamp(max=1.5),
    ),
    "clip": (lambda x: mb.clip(x=x, alpha=np.float32(-0.5), beta=np.float32(1)), lambda x: x.clamp(-0.5, 1)),
    "concat": (lambda x: mb.concat(values=[x, mb.relu(x=x)], axis=1), lambda x: torch.cat([x, x.relu()], 1)),
    "conv_custom": (
        lambda x: mb.conv(x=x, weight=W, bias=B, strides=[2, 1], pad_type="custom", pad=[1, 0, 2, 1], groups=2),
        lambda x: F.conv2d(F.pad(x, (2, 1, 1, 0)), torch.tensor(W), torch.tensor(B), (2, 1), groups=2),
    ),
    "conv_dilated": (
        lambda x: mb.conv(x=x, weight=W, dilations=[1, 2], pad_type="valid", groups=2),
        lambda x: F.conv2d(x, torch.tensor(W), dilation=(1, 2), groups=2),
    ),
    "conv_same": (
        lambda x: mb.conv(x=x, weight=W, strides=[2, 2], pad_type="same", groups=2),
        # 6 -> 3 needs 1 pixel of padding (below), 7 -> 4 needs 2.
        lambda x: F.conv2d(F.pad(x, (1, 1, 0, 1)), torch.tensor(W), stride=2, groups=2),
    ),
    "conv_same_lower": (
        lambda x: mb.conv(x=x, weight=W, strides=[2, 2], pad_type="same_lower", groups=2),
        lambda x: F.conv2d(F.pad(x, (1, 1, 1, 0)), torch.tensor(W), stride=2, groups=2),
    ),
    "cos": (lambda x: mb.cos(x=x), torch.cos),
    "einsum": (
        lambda x: mb.einsum(values=(x, mb.transpose(x=x, perm=[0, 3, 2, 1])), equation="nchw,nwhu->nchu"),
        lambda x: torch.einsum("nchw,nuhw->nchu", x, x),
    ),
    "elu": (lambda x: mb.elu(x=x, alpha=np.float32(0.7)), lambda x: F.elu(x, 0.7)),
    "erf": (lambda x: mb.erf(x=x), torch.erf),
    "exp": (lambda x: mb.exp(x=x), torch.exp),
    "expand_dims": (
        lambda x: mb.expand_dims(x=mb.reduce_sum(x=x, axes=[0], keep_dims=False), axes=[0, -1]),
        lambda x: x.sum(0)[None, ..., None],
    ),
    "flatten2d": (lambda x: mb.flatten2d(x=x, axis=2), lambda x: x.reshape(8, 42)),
    "floor": (lambda x: mb.floor(x=x), torch.floor),
    "gather": (
        lambda x: mb.gather(x=x, indices=np.array([2, 0], np.int32), axis=1, batch_dims=0, validate_indices=False),
        lambda x: x[:, [2, 0]],
    ),
    "gelu": (lambda x: mb.gelu(x=x, mode="EXACT"), F.gelu),
    "gelu_tanh": (lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"), lambda x: F.gelu(x, approximate="tanh")),
    "gelu_sigmoid": (lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"), lambda x: x * torch.sigmoid(1.702 * x)),
    "hardswish": (
        lambda x: mb.mul(
            x=mb.thresholded_relu(x=x, alpha=np.float32(-3)),
            y=mb.sigmoid_hard(x=x, alpha=np.float32(1 / 6), beta=np.float32(0.5)),
        ),
        F.hardswish,
    ),
    "identity": (lambda x: mb.identity(x=x), lambda x: x),
    "instance_norm": (
        lambda x: mb.instance_norm(x=x, gamma=P4, beta=V4, epsilon=np.float32(1e-3)),
        lambda x: F.instance_norm(x, weight=torch.tensor(P4), bias=torch.tensor(V4), eps=1e-3),
    ),
    "inverse": (lambda x: mb.inverse(x=mb.exp(x=x), epsilon=np.float32(1e-3)), lambda x: 1 / (x.exp() + 1e-3)),
    "l2_norm": (
        lambda x: mb.l2_norm(x=x, epsilon=np.float32(1e-3)),
        lambda x: x / (x.square().sum((1, 2, 3), True) + 1e-3).sqrt(),
    ),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=G7, beta=G7, epsilon=np.float32(1e-3)),
        lambda x: F.layer_norm(x, (7,), torch.tensor(G7), torch.tensor(G7), 1e-3),
    ),
    "layer_norm_inner_axes": (
        lambda x: mb.layer_norm(x=x, axes=[1, 2], gamma=G46, beta=G46, epsilon=np.float32(1e-3)),
        lambda x: F.layer_norm(x.permute(0, 3, 1, 2), (4, 6), torch.tensor(G46), torch.tensor(G46), 1e-3).permute(0, 2, 3, 1),
    ),
    "leaky_relu": (lambda x: mb.leaky_relu(x=x, alpha=np.float32(0.2)), lambda x: F.leaky_relu(x, 0.2)),
    "linear": (
        lambda x: mb.linear(x=x, weight=LINEAR, bias=B[:5]),
        lambda x: F.linear(x, torch.tensor(LINEAR), torch.tensor(B[:5])),
    ),
    "linear_activation": (lambda x: mb.linear_activation(x=x, alpha=np.float32(2), beta=np.float32(3)), lambda x: 2 * x + 3),
    "log": (lambda x: mb.log(x=mb.abs(x=x), epsilon=np.float32(0.1)), lambda x: (x.abs() + 0.1).log()),
    "logical": (
        lambda x: mb.select(
            cond=mb.logical_or(
                x=mb.logical_and(x=mb.greater(x=x, y=np.float32(0)), y=mb.less(x=x, y=np.float32(1))),
                y=mb.less_equal(x=x, y=np.float32(-1)),
            ),
            a=x,
            b=mb.square(x=x),
        ),
        lambda x: torch.where((x > 0) & (x < 1) | (x <= -1), x, x * x),
    ),
    "logical_others": (
        lambda x: mb.select(
            cond=mb.logical_xor(
                x=mb.logical_not(x=mb.greater_equal(x=x, y=np.float32(0))), y=mb.equal(x=mb.floor(x=x), y=np.float32(-2))
            ),
            a=x,
            b=mb.square(x=x),
        ),
        lambda x: torch.where((x < 0) ^ (x.floor() == -2), x, x * x),
    ),
    "matmul": (
        lambda x: mb.matmul(x=x, y=mb.relu(x=x), transpose_x=False, transpose_y=True),
        lambda x: x @ x.relu().transpose(-1, -2),
    ),
    "matmul_constant": (lambda x: mb.matmul(x=x, y=LINEAR, transpose_y=True), lambda x: x @ torch.tensor(LINEAR).T),
    "max_pool": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]),
        lambda x: F.max_pool2d(x, 3, 2, 1),
    ),
    "max_pool_ceil": (
        lambda x: mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="custom", pad=[0, 0, 0, 0], ceil_mode=True),
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    ),
    "maximum": (lambda x: mb.maximum(x=x, y=np.float32(0.3)), lambda x: x.clamp(min=0.3)),
    "minimum": (lambda x: mb.minimum(x=x, y=np.float32(0.3)), lambda x: x.clamp(max=0.3)),
    "mul": (lambda x: mb.mul(x=x, y=x), lambda x: x * x),
    "pad": (
        lambda x: mb.pad(x=x, pad=[1, 0, 2, 3], mode="constant", constant_val=np.float32(5)),
        lambda x: F.pad(x, (2, 3, 1, 0), value=5),
    ),
    "pad_reflect": (lambda x: mb.pad(x=x, pad=[1, 2], mode="reflect"), lambda x: F.pad(x, (1, 2, 0, 0), mode="reflect")),
    "pad_replicate": (
        lambda x: mb.pad(x=x, pad=[1, 0, 2, 1], mode="replicate"),
        lambda x: F.pad(x, (2, 1, 1, 0), mode="replicate"),
    ),
    "pow": (lambda x: mb.pow(x=mb.abs(x=x), y=np.float32(1.5)), lambda x: x.abs() ** 1.5),
    "prelu": (lambda x: mb.prelu(x=x, alpha=V4), lambda x: F.prelu(x, torch.tensor(V4))),
    "quantize": (
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=Q, zero_point=np.uint8(100), output_dtype="uint8"),
            scale=Q,
            zero_point=np.uint8(100),
        ),
        lambda x: (torch.round(x / Q).add(100).clamp(0, 255) - 100) * Q,
    ),
    "quantize_axis": (
        lambda x: mb.dequantize(input=mb.quantize(input=x, scale=P4 / 50, axis=1, output_dtype="int8"), scale=P4 / 50, axis=1),
        lambda x: (
            torch.round(x / torch.tensor(P4 / 50).reshape(4, 1, 1)).clamp(-128, 127) * torch.tensor(P4 / 50).reshape(4, 1, 1)
        ),
    ),
    "real_div": (lambda x: mb.real_div(x=np.float32(1), y=mb.exp(x=x)), lambda x: 1 / x.exp()),
    "reduce_all": (lambda x: mb.reduce_sum(x=x, keep_dims=True), lambda x: x.sum().reshape(1, 1, 1, 1)),
    "reduce_l1_norm": (lambda x: mb.reduce_l1_norm(x=x, axes=[1]), lambda x: x.abs().sum(1)),
    "reduce_l2_norm": (lambda x: mb.reduce_l2_norm(x=x, axes=[-1, 1]), lambda x: x.square().sum((1, 3)).sqrt()),
    "reduce_log_sum": (lambda x: mb.reduce_log_sum(x=mb.abs(x=x), axes=[1]), lambda x: x.abs().sum(1).log()),
    "reduce_log_sum_exp": (lambda x: mb.reduce_log_sum_exp(x=x, axes=[1]), lambda x: x.logsumexp(1)),
    "reduce_max": (lambda x: mb.reduce_max(x=x, axes=[1], keep_dims=True), lambda x: x.amax(1, True)),
    "reduce_mean": (lambda x: mb.reduce_mean(x=x, axes=[-2, -1]), lambda x: x.mean((2, 3))),
    "reduce_min": (lambda x: mb.reduce_min(x=x, axes=[2]), lambda x: x.amin(2)),
    "reduce_prod": (lambda x: mb.reduce_prod(x=x, axes=[1]), lambda x: x.prod(1)),
    "reduce_sum": (lambda x: mb.reduce_sum(x=x, axes=[0, 2]), lambda x: x.sum((0, 2))),
    "reduce_sum_square": (lambda x: mb.reduce_sum_square(x=x, axes=[1]), lambda x: x.square().sum(1)),
    "relu": (lambda x: mb.relu(x=x), torch.relu),
    "relu6": (lambda x: mb.relu6(x=mb.mul(x=x, y=np.float32(3))), lambda x: F.relu6(3 * x)),
    "reshape": (lambda x: mb.reshape(x=x, shape=[2, -1, 7]), lambda x: x.reshape(2, -1, 7)),
    "reshape_computed": (
        lambda x: mb.reshape(
            x=x,
            shape=mb.concat(values=[mb.slice_by_size(x=mb.shape(x=x), begin=[0], size=[1]), np.array([-1], np.int32)], axis=0),
        ),
        lambda x: x.reshape(2, -1),
    ),
    "round": (lambda x: mb.round(x=x), torch.round),
    "rsqrt": (lambda x: mb.rsqrt(x=mb.abs(x=x), epsilon=np.float32(0.1)), lambda x: (x.abs() + 0.1).rsqrt()),
    "scaled_tanh": (
        lambda x: mb.scaled_tanh(x=x, alpha=np.float32(2), beta=np.float32(0.5)),
        lambda x: 2 * torch.tanh(0.5 * x),
    ),
    "sigmoid": (lambda x: mb.sigmoid(x=x), torch.sigmoid),
    "sigmoid_hard": (
        lambda x: mb.sigmoid_hard(x=x, alpha=np.float32(0.3), beta=np.float32(0.4)),
        lambda x: (0.3 * x + 0.4).clamp(0, 1),
    ),
    "sign": (lambda x: mb.sign(x=x), torch.sign),
    "silu": (lambda x: mb.silu(x=x), F.silu),
    "sin": (lambda x: mb.sin(x=x), torch.sin),
    "slice_by_index": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[1, 1, 5, 2],
            end=[0, 3, 0, 0],
            stride=[1, 1, -2, 2],
            begin_mask=[True, False, False, False],
            end_mask=[True, False, False, True],
        ),
        lambda x: x[:, 1:3, [5, 3, 1], 2::2],
    ),
    "slice_and_squeeze": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[1, -1, 1, 1],
            end=[0, 0, 0, 0],
            end_mask=[True] * 4,
            begin_mask=[True, False, True, True],
            squeeze_mask=[False, True, False, False],
        ),
        lambda x: x[:, -1],
    ),
    "slice_by_size": (lambda x: mb.slice_by_size(x=x, begin=[0, 1, 2, 0], size=[-1, 2, 3, -1]), lambda x: x[:, 1:3, 2:5]),
    "softmax": (lambda x: mb.softmax(x=x, axis=1), lambda x: x.softmax(1)),
    "softplus": (lambda x: mb.softplus(x=x), F.softplus),
    "softsign": (lambda x: mb.softsign(x=x), F.softsign),
    "split": (lambda x: mb.split(x=x, num_splits=2, axis=1)[1], lambda x: x[:, 2:]),
    "split_sizes": (lambda x: mb.split(x=x, split_sizes=[1, 3], axis=1)[1], lambda x: x[:, 1:]),
    "sqrt": (lambda x: mb.sqrt(x=mb.abs(x=x)), lambda x: x.abs().sqrt()),
    "square": (lambda x: mb.square(x=x), torch.square),
    "squeeze": (lambda x: mb.squeeze(x=mb.reduce_mean(x=x, axes=[1], keep_dims=True), axes=[1]), lambda x: x.mean(1)),
    "stack": (lambda x: mb.stack(values=[x, mb.relu(x=x)], axis=1), lambda x: torch.stack([x, x.relu()], 1)),
    "sub": (lambda x: mb.sub(x=np.float32(1), y=x), lambda x: 1 - x),
    "tanh": (lambda x: mb.tanh(x=x), torch.tanh),
    "thresholded_relu": (lambda x: mb.thresholded_relu(x=x, alpha=np.float32(-0.5)), lambda x: torch.where(x >= -0.5, x, 0.0)),
    "tile": (lambda x: mb.tile(x=x, reps=[1, 2, 1, 3]), lambda x: x.repeat(1, 2, 1, 3)),
    "transpose": (lambda x: mb.transpose(x=x, perm=[0, 2, -1, 1]), lambda x: x.permute(0, 2, 3, 1)),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the evaluator makes of one program that holds all cases."""
    files = package(
        tmp_path_factory.mktemp("ops"), lambda x: [mb.identity(x=build(x), name=name) for name, (build, _) in CASES.items()]
    )
    session = open_session(translate(read_package(files)), "ops")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": X}), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_operator_computes_what_torch_computes(name: str, answers: dict[str, np.ndarray]) -> None:
    expected = CASES[name][1](torch.tensor(X)).numpy()
    assert answers[name].shape == expected.shape
    np.testing.assert_allclose(answers[name], expected, rtol=2e-5, atol=2e-5)


def test_fp16_results_are_rounded_as_numpy_rounds_them(tmp_path: Path) -> None:
    """A chain of fp16 operations agrees bit for bit with NumPy's rounding after each: no optimisation removes the casts."""
    small = np.float16(1.001)

    def build(x: Any) -> list[Any]:
        return [mb.identity(x=mb.sub(x=mb.mul(x=mb.add(x=x, y=small), y=np.float16(0.3)), y=small), name="y")]

    files = package(tmp_path, build, dtype=types.fp16)
    x = X.astype(np.float16)
    added = (x.astype(np.float32) + np.float32(small)).astype(np.float16)
    scaled = (added.astype(np.float32) * np.float32(np.float16(0.3))).astype(np.float16)
    expected = (scaled.astype(np.float32) - np.float32(small)).astype(np.float16)
    np.testing.assert_array_equal(evaluate(files, x.astype(np.float32))["y"], expected.astype(np.float32))


def test_fp16_overflow_is_infinite_as_on_a_device(tmp_path: Path) -> None:
    """A norm of 598 squared does not fit fp16; a runtime that silently computes in fp32 would hide it."""
    files = package(tmp_path, lambda x: [mb.sqrt(x=mb.square(x=x), name="y")], dtype=types.fp16)
    values = evaluate(files, np.full((2, 4, 6, 7), 300.0, np.float32))["y"]
    assert np.isinf(values).all()


# Groups and blocks exist from iOS 18 on.
@pytest.mark.parametrize(
    ("how", "target"),
    [(how, target) for how in ("linear", "palettized 6 bits", "pruned") for target in (ct.target.iOS17, ct.target.iOS18)]
    + [(how, ct.target.iOS18) for how in ("palettized grouped", "blockwise")],
)
def test_compressed_weights_are_read_as_coremltools_reads_them(tmp_path: Path, how: str, target: Any) -> None:
    import coremltools.optimize.coreml as cto

    weight = np.random.default_rng(1).normal(0, 1, (8, 32)).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec((2, 32))], opset_version=target)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=weight, name="y")

    model = convert(program, target)
    op, run = {
        "linear": (cto.OpLinearQuantizerConfig(mode="linear", weight_threshold=0), cto.linear_quantize_weights),
        "blockwise": (
            cto.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=8, weight_threshold=0
            ),
            cto.linear_quantize_weights,
        ),
        "palettized 6 bits": (cto.OpPalettizerConfig(mode="uniform", nbits=6, weight_threshold=0), cto.palettize_weights),
        "palettized grouped": (
            cto.OpPalettizerConfig(
                mode="uniform", nbits=3, granularity="per_grouped_channel", group_size=4, weight_threshold=0
            ),
            cto.palettize_weights,
        ),
        "pruned": (cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0), cto.prune_weights),
    }[how]
    model = run(model, cto.OptimizationConfig(global_config=op))
    compressed = next(o for o in model._mil_program.functions["main"].operations if o.op_type.startswith("constexpr_"))
    dense = compressed.materialized_val_inference()
    x = np.random.default_rng(2).normal(0, 1, (2, 32)).astype(np.float32)
    files = saved(model, tmp_path)
    assert any(operation.kind in DECOMPRESSORS for operation in read_package(files).operations)
    np.testing.assert_allclose(evaluate(files, x)["y"], x @ dense.reshape(8, 32).T, rtol=1e-5, atol=1e-5)


def test_constants_are_read_as_coremltools_reads_them(tmp_path: Path) -> None:
    """Our reader of packages against the converter's own: floats, integers, truth values and strings."""
    from coremltools.converters.mil.frontend.milproto.load import load

    files = package(tmp_path, lambda x: [build(x) for build, _ in CASES.values()])
    spec = ct.utils.load_spec(str(tmp_path / "model.mlpackage"))
    weights = tmp_path / "model.mlpackage" / "Data" / "com.apple.CoreML" / "weights"
    theirs = load(spec, spec.specificationVersion, str(weights)).functions["main"]
    ours = read_package(files).constants
    compared = 0
    for operation in theirs.operations:
        if operation.op_type == "const" and operation.outputs[0].name in ours:
            np.testing.assert_array_equal(ours[operation.outputs[0].name], operation.outputs[0].val)
            compared += 1
    assert compared > 50


def test_unknown_operator_is_refused_by_name(tmp_path: Path) -> None:
    files = package(tmp_path, lambda x: [mb.cumsum(x=x, axis=1, name="y")])
    with pytest.raises(RuntimeFailure, match=r"operator 'cumsum' \(output 'y'\)"):
        open_runtime(artifact(files, input_name="x"), "coreml_reference")


def test_unsupported_use_of_a_known_operator_is_refused_by_name() -> None:
    kind = TensorType("fp32", (1, 2))
    names = {"x": ("x",), "mode": ("mode",)}
    program = Program({"x": kind}, ("y",), (Operation("gelu", names, {"y": kind}),), {"mode": "CUBIC"}, {})
    with pytest.raises(UnsupportedError, match=r"operator 'gelu' \(output 'y'\): mode 'CUBIC'"):
        translate(program)


def test_image_inputs_get_the_channel_order_that_the_package_asks_for() -> None:
    """A package made for BGR gets BGR, as Core ML does it; so a BGR graph under RGB images is caught and not healed."""

    class FirstChannel(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.mean((2, 3))[:, :2]

    images = np.random.default_rng(3).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    means = images.mean((1, 2)).astype(np.float32)
    for order, expected in ((ct.colorlayout.RGB, means[:, :2]), (ct.colorlayout.BGR, means[:, :0:-1])):
        model = ct.convert(
            torch.jit.trace(FirstChannel(), torch.zeros(1, 3, 8, 8)),
            inputs=[ct.ImageType(name="image", shape=(1, 3, 8, 8), color_layout=order)],
            outputs=[ct.TensorType(name="embedding", dtype=np.float32)],
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
        with open_runtime(artifact(saved(model), dtype="image", size=8, dim=2), "coreml_reference") as runtime:
            np.testing.assert_allclose(runtime.run(images), expected, rtol=1e-5)


def test_a_flexible_batch_runs_in_one_call() -> None:
    class Flat(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.flatten(1)[:, :4] * 2

    model = ct.convert(
        torch.jit.trace(Flat(), torch.zeros(1, 3, 8, 8)),
        inputs=[ct.TensorType(name="image", shape=(ct.RangeDim(1, 64, 1), 3, 8, 8))],
        outputs=[ct.TensorType(name="embedding", dtype=np.float32)],
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    images = np.random.default_rng(4).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    loaded = artifact(saved(model), dtype="float32", layout="nchw", size=8, dim=4, dynamic=True)
    with open_runtime(loaded, "coreml_reference") as runtime:
        np.testing.assert_array_equal(runtime.run(images), images[:, 0, :4, 0].astype(np.float32) * 2)


@pytest.fixture(scope="module")
def small_package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return package(tmp_path_factory.mktemp("small"), lambda x: [mb.conv(x=x, weight=W, bias=B, groups=2, name="y")])


def test_damaged_packages_are_refused_with_one_message(small_package: dict[str, bytes]) -> None:
    model = "Data/com.apple.CoreML/model.mlmodel"
    damaged = {
        "no manifest": {k: v for k, v in small_package.items() if k != "Manifest.json"},
        "no model": {k: v for k, v in small_package.items() if k != model},
        "no weights": {k: v for k, v in small_package.items() if "weight" not in k},
        "manifest is no JSON": {**small_package, "Manifest.json": b"\xff{"},
        "model is garbage": {**small_package, model: b"\xff" * 500},
        "model is empty": {**small_package, model: b""},
        "model cut": {**small_package, model: small_package[model][:-40]},
        "weights cut": {k: (v[:100] if k.endswith(".bin") else v) for k, v in small_package.items()},
    }
    for files in damaged.values():
        with pytest.raises(RuntimeFailure, match=r"artifacts/model\.mlpackage"):
            open_runtime(artifact(files, input_name="x"), "coreml_reference")


def test_mutated_models_never_crash(small_package: dict[str, bytes]) -> None:
    model = "Data/com.apple.CoreML/model.mlmodel"
    rng = np.random.default_rng(5)
    for _ in range(300):
        data = bytearray(small_package[model])
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        with contextlib.suppress(RuntimeFailure):
            open_runtime(artifact({**small_package, model: bytes(data)}, input_name="x", output="y"), "coreml_reference")


def test_wire_format_refuses_what_is_no_message() -> None:
    nested: dict[int, Field] = {2: Field("text", "string")}
    nested[1] = Field("inner", nested)
    assert decode(b"\x0a\x04\x12\x02hi", nested) == {"inner": {"text": "hi"}}
    for broken in (b"\x0a", b"\x0a\x05\x12", b"\x0b\x01", b"\x08\xff", b"\x12\x01\xff", b"\x0a\x7f" * 100):
        with pytest.raises(ValueError, match=r"."):
            decode(broken, nested)


def test_every_operator_of_the_table_has_a_case() -> None:
    """Whoever adds an operator adds its case."""
    source = Path(__file__).read_text()
    assert [name for name in OPERATORS if f"mb.{name}(" not in source] == []


def test_the_evaluator_needs_neither_torch_nor_coremltools(small_package: dict[str, bytes], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib\n"
        "from samespace.sdk.runtimes.mil.program import read_package\n"
        "from samespace.sdk.runtimes.mil.translate import translate\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "files = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*') if p.is_file()}\n"
        "import samespace.sdk.runtimes.coreml_reference as r, onnxruntime\n"
        "onnxruntime.InferenceSession(translate(read_package(files)))\n"
        "print(sorted({'torch', 'coremltools'} & set(sys.modules)))\n"
    )
    root = tmp_path / "model.mlpackage"
    for name, data in small_package.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    answer = subprocess.run([sys.executable, str(script), str(root)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def convert(program: Any, target: Any = ct.target.iOS17) -> Any:
    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )


def package(folder: Path, build: Callable[[Any], list[Any]], dtype: Any = types.fp32) -> dict[str, bytes]:
    """The files of a package whose program is ``build(x)`` for x like :data:`X`; also left at ``folder/model.mlpackage``."""

    @mb.program(input_specs=[mb.TensorSpec(X.shape, dtype=dtype)], opset_version=ct.target.iOS17)
    def program(x: Any) -> Any:
        return tuple(build(x))

    return saved(convert(program), folder)


def saved(model: Any, folder: Path | None = None) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(folder or temporary) / "model.mlpackage"
        model.save(str(path))
        return dict(_files(path))


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield file.relative_to(path).as_posix(), file.read_bytes()


def evaluate(files: dict[str, bytes], x: np.ndarray) -> dict[str, np.ndarray]:
    session = open_session(translate(read_package(files)), "model")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def artifact(
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
