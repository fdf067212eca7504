"""Costs of graphs, against slow and obvious ways to count."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samespace.edge.devices.costs import Graph, Operation, Value
from samespace.edge.devices.costs.onnx_graph import onnx_graph
from samespace.edge.devices.costs.tflite_graph import tflite_graph


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Operations that read what earlier ones made, or constants."""
    values = {"in": Value(draw(st.integers(1, 99))), "weight": Value(draw(st.integers(1, 99)), constant=True, parameters=7)}
    operations = []
    for place in range(draw(st.integers(1, 8))):
        made = f"made{place}"
        inputs = draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=3, unique=True))
        operations.append(Operation("any", tuple(inputs), (made,), draw(st.integers(0, 9))))
        values[made] = Value(draw(st.integers(1, 99)))
    return Graph(tuple(operations), values, ("in",), (f"made{len(operations) - 1}",))


@given(graphs())
def test_the_peak_is_the_largest_sum_of_what_is_still_needed(graph: Graph) -> None:
    def needed(name: str, place: int) -> bool:
        later = any(name in operation.inputs for operation in graph.operations[place:])
        return later or name in graph.outputs

    sums = []
    for place, operation in enumerate(graph.operations):
        there = {"in", *(name for earlier in graph.operations[:place] for name in earlier.outputs)}
        alive = {name for name in there if needed(name, place)} | set(operation.outputs)
        sums.append(sum(graph.values[name].bytes for name in alive if not graph.values[name].constant))
    assert graph.costs().peak_activations == max(sums)
    assert graph.costs().macs == sum(operation.macs for operation in graph.operations)
    used = any("weight" in operation.inputs for operation in graph.operations)
    assert graph.costs().parameters == (7 if used else 0)


def test_a_view_moves_nothing() -> None:
    values = {"a": Value(8), "b": Value(8), "c": Value(2)}
    graph = Graph((Operation("sum", ("b",), ("c",)),), values, ("a",), ("c",), same={"b": "a"})
    assert graph.costs().bytes_moved == 10
    assert graph.costs().peak_activations == 10


def test_a_tensor_of_unknown_size_is_named() -> None:
    graph = Graph((Operation("sum", ("a",), ("b",)),), {"a": Value(8)}, ("a",), ("b",))
    with pytest.raises(ValueError, match="'b'"):
        graph.costs()


def test_a_convolution_and_a_product_by_hand() -> None:
    floats, helper = onnx.TensorProto.FLOAT, onnx.helper
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Flatten", ["z"], ["flat"]),
        helper.make_node("Gemm", ["flat", "m"], ["out"], transB=1),
    ]
    made = helper.make_graph(
        nodes,
        "by-hand",
        [helper.make_tensor_value_info("x", floats, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("out", floats, [1, 5])],
        [
            onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w"),
            onnx.numpy_helper.from_array(np.zeros(4, np.float32), "b"),
            onnx.numpy_helper.from_array(np.zeros((5, 64), np.float32), "m"),
        ],
    )
    found = onnx_graph(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()).costs()
    picture, map_ = 3 * 8 * 8, 4 * 4 * 4
    assert found.macs == map_ * 3 * 3 * 3 + 5 * 64
    assert found.parameters == 4 * 3 * 3 * 3 + 4 + 5 * 64
    convolved, halved, product = picture + 4 * 27 + 4 + map_, 2 * map_, map_ + 5 * 64 + 5
    assert found.bytes_moved == 4 * (convolved + halved + product)
    assert found.peak_activations == 4 * (picture + map_)


@pytest.mark.parametrize("data", [b"", b"no model", b"\0\0\0\0TFL3" + bytes(40)])
def test_other_bytes_are_refused(data: bytes) -> None:
    for read in (onnx_graph, tflite_graph):
        with pytest.raises(ValueError, match=r"no (ONNX|TFLite) file"):
            read(data)
