"""Compressed weights: whatever coremltools makes of a weight, the evaluator computes with the values that coremltools means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samespace.sdk.runtimes.coreml_reference import FP32_TOLERANCE
from samespace.sdk.runtimes.mil.decompress import DECOMPRESSORS, decompress
from samespace.sdk.runtimes.mil.graph import UnsupportedError
from samespace.sdk.runtimes.mil.program import Operation, Program, TensorType, read_package
from samespace.sdk.runtimes.mil.translate import translate

ct = pytest.importorskip("coremltools")
cto = pytest.importorskip("coremltools.optimize.coreml")
mb = ct.converters.mil.Builder

X = np.random.default_rng(2).normal(0, 1, (2, 32)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(0, 1, (8, 32)).astype(np.float32)
GROUPED = {"granularity": "per_grouped_channel", "group_size": 4}


def palettised(model: Any, joint: bool = False, **options: Any) -> Any:
    config = cto.OpPalettizerConfig(weight_threshold=0, **{"mode": "uniform", **options})
    return cto.palettize_weights(model, cto.OptimizationConfig(global_config=config), joint_compression=joint)


def quantised(model: Any, joint: bool = False, **options: Any) -> Any:
    config = cto.OpLinearQuantizerConfig(weight_threshold=0, **{"mode": "linear_symmetric", **options})
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config), joint_compression=joint)


def pruned(model: Any, joint: bool = False) -> Any:
    config = cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=0)
    return cto.prune_weights(model, cto.OptimizationConfig(global_config=config), joint_compression=joint)


#: name -> (how coremltools compresses, oldest iOS, the operators that it takes).
COMPRESSIONS: dict[str, tuple[Any, int, set[str]]] = {
    "linear": (lambda m: quantised(m, mode="linear"), 16, {"affine_dequantize"}),
    "linear since 18": (lambda m: quantised(m, mode="linear"), 18, {"blockwise_shift_scale"}),
    "linear per tensor": (lambda m: quantised(m, granularity="per_tensor"), 16, {"affine_dequantize"}),
    "4 bits in blocks": (
        lambda m: quantised(m, dtype="int4", granularity="per_block", block_size=8), 18, {"blockwise_shift_scale"}
    ),
    "6 bits": (lambda m: palettised(m, nbits=6), 16, {"lut_to_dense"}),
    "6 bits since 18": (lambda m: palettised(m, nbits=6), 18, {"lut_to_dense"}),
    "4 bits": (lambda m: palettised(m, nbits=4), 17, {"lut_to_dense"}),
    "4 bits in groups": (lambda m: palettised(m, nbits=4, **GROUPED), 18, {"lut_to_dense"}),
    "3 bits in groups": (lambda m: palettised(m, nbits=3, **GROUPED), 18, {"lut_to_dense"}),
    "vectors in groups": (
        lambda m: palettised(m, mode="unique", nbits=None, cluster_dim=2, **GROUPED), 18, {"lut_to_dense"}
    ),
    "scaled tables": (
        lambda m: palettised(m, nbits=4, enable_per_channel_scale=True, **GROUPED),
        18,
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
    "tables of integers": (
        lambda m: quantised(palettised(m, nbits=4), joint=True, granularity="per_tensor"),
        18,
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
    "sparse": (lambda m: pruned(m), 16, {"sparse_to_dense"}),
    "sparse since 18": (lambda m: pruned(m), 18, {"sparse_to_dense"}),
    "sparse tables": (lambda m: palettised(pruned(m), joint=True, nbits=4), 18, {"lut_to_sparse", "sparse_to_dense"}),
    "sparse integers": (
        lambda m: quantised(pruned(m), joint=True), 18, {"sparse_blockwise_shift_scale", "sparse_to_dense"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights_are_read_as_coremltools_reads_them(mil: Any, name: str) -> None:
    compress, ios, operators = COMPRESSIONS[name]
    target = getattr(ct.target, f"iOS{ios}")
    # Tables of whole vectors are exact where there are few vectors.
    weight = WEIGHT[:2].repeat(4, 0) if name.startswith("vectors") else WEIGHT

    @mb.program(input_specs=[mb.TensorSpec(X.shape)], opset_version=target)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=weight, name="y")

    model = compress(mil.convert(program, target=target))
    files = mil.saved(model)
    found = {operation.kind for operation in read_package(files).operations if operation.kind in DECOMPRESSORS}
    assert found == {f"constexpr_{operator}" for operator in operators}
    linear = next(op for op in model._mil_program.functions["main"].operations if op.op_type == "linear")
    dense = materialised(linear.weight.op)
    # The compression is a compression of this weight, and no accident of both readers.
    assert np.abs(dense - weight).max() < (3 if operators & {"sparse_to_dense"} else 0.5)
    expected = X @ dense.reshape(8, 32).T
    np.testing.assert_allclose(mil.evaluate(files, X)["y"], expected, rtol=FP32_TOLERANCE, atol=FP32_TOLERANCE)


def materialised(operation: Any) -> np.ndarray:
    """coremltools' value of a compressed weight; those that it is made of come first, which it does not see to itself."""
    for variable in operation.inputs.values():
        for one in variable if isinstance(variable, (list, tuple)) else [variable]:
            source = getattr(one, "op", None)
            if source is not None and source.op_type.startswith("constexpr_"):
                values = source.materialized_val_inference()
                for output, value in zip(source.outputs, values if isinstance(values, tuple) else (values,), strict=True):
                    output._sym_val = ct.converters.mil.mil.types.type_mapping.numpy_val_to_builtin_val(value)[0]
                    materialised(source)
    return operation.materialized_val_inference()


def test_every_decompressor_is_tried() -> None:
    # Core ML itself makes constexpr_cast nowhere in a converted model: an fp16 constant that is used as fp32.
    tried = {f"constexpr_{operator}" for _, _, operators in COMPRESSIONS.values() for operator in operators}
    assert set(DECOMPRESSORS) - tried == {"constexpr_cast"}
    (value,) = decompress("constexpr_cast", {"source_val": np.float16([1.5, 2])})
    assert value.dtype == np.float32


def test_tables_that_do_not_fit_their_indices_are_refused_by_name() -> None:
    """A grid of no tables, more tables than channels, uneven groups, indices that no table has, vectors beyond the shape."""
    kind = TensorType("fp32", (8, 4))
    names = {name: (name,) for name in ("indices", "lut", "vector_axis")}
    for lut_shape in ((0, 1, 16, 1), (16, 1, 16, 1), (3, 1, 16, 1), (2, 1, 8, 1), (1, 1, 16, 2)):
        values = {"indices": np.arange(32, dtype=np.uint8).reshape(8, 4) % 16, "lut": np.zeros(lut_shape, np.float32)}
        values["vector_axis"] = np.int32(0)
        program = Program({}, ("w",), (Operation("constexpr_lut_to_dense", names, {"w": kind}),), values, {})
        with pytest.raises(UnsupportedError, match=r"'constexpr_lut_to_dense' \(output 'w'\)"):
            translate(program)
