"""The Core ML evaluator against torch, operator by operator: in fp32, and in the fp16 that coremltools makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samespace.sdk.runtimes.coreml_reference import FP16_TOLERANCE, FP32_TOLERANCE
from samespace.sdk.runtimes.mil.program import read_package
from samespace.sdk.runtimes.mil.translate import OPERATORS

ct = pytest.importorskip("coremltools")
torch = pytest.importorskip("torch")
mb = ct.converters.mil.Builder
types = ct.converters.mil.mil.types
F = torch.nn.functional

RNG = np.random.default_rng(7)


def exact(values: np.ndarray) -> np.ndarray:
    """float32 numbers that fp16 holds exactly: so that both programs compute with the same constants."""
    return values.astype(np.float16).astype(np.float32)


X = exact(RNG.normal(0, 2, (2, 4, 6, 7)))
W = exact(RNG.normal(0, 1, (8, 2, 3, 3)))
B = exact(RNG.normal(0, 1, 8))
LINEAR = exact(RNG.normal(0, 1, (5, 7)))
V4, P4 = exact(RNG.normal(0, 1, 4)), exact(RNG.uniform(0.5, 2, 4))
G7 = exact(RNG.normal(0, 1, 7))
G46 = exact(RNG.normal(0, 1, (4, 6)))
Q, Q4 = np.float32(3 / 64), exact(P4 / 50)

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
        lambda x: mb.dequantize(input=mb.quantize(input=x, scale=Q4, axis=1, output_dtype="int8"), scale=Q4, axis=1),
        lambda x: torch.round(x / torch.tensor(Q4).reshape(4, 1, 1)).clamp(-128, 127) * torch.tensor(Q4).reshape(4, 1, 1),
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


#: Their results are truth values or integers.
NO_FP16_RESULT = {
    "equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_not", "logical_or", "logical_xor",
    "quantize", "shape",
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(mil: Any) -> dict[str, np.ndarray]:
    """What the evaluator makes of one program that holds all cases."""
    return mil.evaluate(mil.package(all_cases), X)


@pytest.fixture(scope="module")
def fp16_files(mil: Any) -> dict[str, bytes]:
    """The same program with its arithmetic in fp16."""
    return mil.package(all_cases, precision=ct.precision.FLOAT16)


@pytest.fixture(scope="module")
def fp16_answers(mil: Any, fp16_files: dict[str, bytes]) -> dict[str, np.ndarray]:
    return mil.evaluate(fp16_files, X)


def all_cases(x: Any) -> list[Any]:
    return [mb.identity(x=build(x), name=name) for name, (build, _) in CASES.items()]


@pytest.mark.parametrize("name", CASES)
def test_operator_computes_what_torch_computes(name: str, answers: dict[str, np.ndarray]) -> None:
    expected = CASES[name][1](torch.tensor(X)).numpy()
    assert answers[name].shape == expected.shape
    np.testing.assert_allclose(answers[name], expected, rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_fp16_operator_computes_what_torch_computes(name: str, fp16_answers: dict[str, np.ndarray]) -> None:
    """Within a unit in the last place of fp16: of the answer, or of 1 where operations before it were rounded too."""
    expected = CASES[name][1](torch.tensor(X)).numpy()
    assert fp16_answers[name].shape == expected.shape
    np.testing.assert_allclose(fp16_answers[name], expected, rtol=FP16_TOLERANCE, atol=FP16_TOLERANCE)


def test_every_operator_of_the_table_has_a_case_in_both_precisions(fp16_files: dict[str, bytes]) -> None:
    """Whoever adds an operator adds its case."""
    source = Path(__file__).read_text()
    assert [name for name in OPERATORS if f"mb.{name}(" not in source] == []
    halves = {
        operation.kind
        for operation in read_package(fp16_files).operations
        if any(kind.dtype == "fp16" for kind in operation.outputs.values())
    }
    assert set(OPERATORS) - halves == NO_FP16_RESULT


def test_constants_are_read_as_coremltools_reads_them(mil: Any, tmp_path: Path) -> None:
    """Our reader of packages against the converter's own: floats, integers, truth values and strings."""
    from coremltools.converters.mil.frontend.milproto.load import load

    files = mil.package(all_cases, folder=tmp_path)
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


def test_fp16_results_are_rounded_as_numpy_rounds_them(mil: Any) -> None:
    """A chain of fp16 operations agrees bit for bit with NumPy's rounding after each: no optimisation removes the casts."""
    small = np.float16(1.001)

    def build(x: Any) -> list[Any]:
        return [mb.identity(x=mb.sub(x=mb.mul(x=mb.add(x=x, y=small), y=np.float16(0.3)), y=small), name="y")]

    files = mil.package(build, dtype=types.fp16)
    x = X.astype(np.float16)
    added = (x.astype(np.float32) + np.float32(small)).astype(np.float16)
    scaled = (added.astype(np.float32) * np.float32(np.float16(0.3))).astype(np.float16)
    expected = (scaled.astype(np.float32) - np.float32(small)).astype(np.float16)
    np.testing.assert_array_equal(mil.evaluate(files, x.astype(np.float32))["y"], expected.astype(np.float32))


def test_an_fp16_input_is_rounded_as_well(mil: Any) -> None:
    files = mil.package(lambda x: [mb.sub(x=x, y=np.float16(1), name="y")], dtype=types.fp16)
    assert (mil.evaluate(files, np.full_like(X, 1.0004))["y"] == 0).all()


def test_fp16_overflow_is_infinite_as_on_a_device(mil: Any) -> None:
    """A norm of 598 squared does not fit fp16; a runtime that silently computes in fp32 would hide it."""
    files = mil.package(lambda x: [mb.sqrt(x=mb.square(x=x), name="y")], dtype=types.fp16)
    values = mil.evaluate(files, np.full((2, 4, 6, 7), 300.0, np.float32))["y"]
    assert np.isinf(values).all()
