"""A wrong operation is planted by altering the weights of one node, in every format; its name must come out."""

from __future__ import annotations

import json
import re
import shlex
import struct
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from samespace.export.bisect import Divergence, Step, Trace, first_divergence
from samespace.export.bisect.compare import diverging_step, pairs
from samespace.export.conversion import Job, convert
from samespace.export.formats import exporter_class
from samespace.export.formats.base import artifact_of
from samespace.export.options import ExportOptions
from samespace.export.run import Run, RunModel, read_run
from samespace.export.torch_runtime import embed
from samespace.sdk.bundle import artifact_id, write_bundle
from samespace.sdk.cli import main
from samespace.sdk.errors import ConfigError, RuntimeFailure
from samespace.sdk.identity import digest
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.signing import SigningKey, TrustStore

pytestmark = [pytest.mark.export, pytest.mark.timeout(900)]

#: Artifacts with the operators whose weights are altered.
PLANTED = {
    "onnx-fp32": ("Conv", "Gemm", "MatMul"),
    "onnx-int8": ("Conv", "Gemm", "MatMul"),
    "ort-int8": ("Conv", "Gemm", "MatMul"),
    "tflite-fp32": ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
    "tflite-int8": ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
    "coreml-fp32": ("conv", "linear"),
    "coreml-fp16": ("conv", "linear"),
}
#: Compared with fp32, and healthy.
OTHERS = ("ort-fp32", "tflite-fp16", "coreml-palette6")

Altered = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def source(make_run: Callable[..., Path]) -> Run:
    """A run whose model answers to its input: an untrained network with a fresh one's batch-norm statistics gives every picture
    the same embedding, whatever is done to its weights."""
    path = make_run("inverted")
    before = read_run(path).models["inverted"]
    network = before.build().train()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    embed(network, before.record, before.record.preprocess.batch(read_run(path).probe_images))
    weights = safetensors.torch.save(network.state_dict())
    record = before.record.model_copy(update={"weights_sha256": digest(weights)})
    (path / "models" / "inverted.json").write_text(record.model_dump_json())
    (path / "models" / "inverted.safetensors").write_bytes(weights)
    return read_run(path)


@pytest.fixture(scope="module")
def model(source: Run) -> RunModel:
    return source.models["inverted"]


@pytest.fixture(scope="module")
def pictures(source: Run, model: RunModel) -> np.ndarray:
    return model.record.preprocess.batch(source.probe_images)


@pytest.fixture(scope="module")
def made(model: RunModel, pictures: np.ndarray) -> dict[str, LoadedArtifact]:
    """Every artifact by name, converted once; ``tflite-int8-dynamic`` is for LiteRT only."""
    names = [name.split("-", 1) for name in dict.fromkeys((*PLANTED, *OTHERS))]
    jobs = [Job(model, format, precision, ExportOptions(calibration=pictures)) for format, precision in names]
    jobs.append(Job(model, "tflite", "int8-dynamic", ExportOptions(min_litert="2.17")))
    found = {}
    for job, conversion in zip(jobs, convert(jobs), strict=True):
        spec = artifact_of(conversion, exporter_class(job.format), job.precision, artifact_id(conversion.files))
        found[spec.name] = LoadedArtifact(spec, conversion.files, model.record.preprocess.size, model.record.dim)
    return found


def reversed_channels(weights: np.ndarray) -> np.ndarray:
    return weights[::-1]


def not_finite(weights: np.ndarray) -> np.ndarray:
    return np.full_like(weights, np.inf)


def half_as_large(weights: np.ndarray) -> np.ndarray:
    return weights // 2 if weights.dtype.kind == "i" else weights * weights.dtype.type(0.5)


def planted_onnx(artifact: LoadedArtifact, place: float, alter: Altered) -> tuple[LoadedArtifact, str]:
    import onnx
    from onnx import numpy_helper

    graph = artifact.single_file if artifact.spec.format == "onnx" else resaved(artifact.single_file, "ONNX")
    model: Any = onnx.load_model_from_string(graph)
    behind = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    nodes = [node for node in model.graph.node if node.op_type in PLANTED[artifact.spec.name]]
    node = nodes[round(place * (len(nodes) - 1))]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}[behind.get(node.input[1], node.input[1])]
    weights.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(alter(numpy_helper.to_array(weights))), weights.name))
    changed = model.SerializeToString()
    return altered(artifact, changed if artifact.spec.format == "onnx" else resaved(changed, "ORT")), node.name


def resaved(model: bytes, format: str) -> bytes:
    """By onnxruntime, from its flat format to ONNX or back."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.optimized_model_filepath = str(Path(folder) / "model")
        settings.add_session_config_entry("session.save_model_format", format)
        onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        return (Path(folder) / "model").read_bytes()


def planted_tflite(artifact: LoadedArtifact, place: float, alter: Altered) -> tuple[LoadedArtifact, str]:
    """Alters the bytes where they lie in the file."""
    from ai_edge_litert import schema_py_generated as schema

    data = bytearray(artifact.single_file)
    model = schema.Model.GetRootAsModel(data, 0)
    graph: Any = model.Subgraphs(0)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    operators = [graph.Operators(index) for index in range(graph.OperatorsLength())]
    codes = [model.OperatorCodes(operator.OpcodeIndex()) for operator in operators]
    kinds = [names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]
    nodes = [index for index, kind in enumerate(kinds) if kind in PLANTED[artifact.spec.name]]
    node = nodes[round(place * (len(nodes) - 1))]
    tensor: Any = graph.Tensors(operators[node].Inputs(1))
    buffer: Any = model.Buffers(tensor.Buffer())
    # Quantised models keep their weights behind the FlatBuffer.
    outside = slice(buffer.Offset(), buffer.Offset() + buffer.Size())
    content = np.frombuffer(data, np.uint8)[outside] if buffer.Offset() > 1 else buffer.DataAsNumpy()
    weights = content.view({0: np.float32, 9: np.int8}[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
    # Output channels come last in depthwise convolutions.
    axis = 3 if kinds[node] == "DEPTHWISE_CONV_2D" else 0
    weights[...] = np.moveaxis(alter(np.moveaxis(weights, axis, 0)).copy(), 0, axis)
    return altered(artifact, bytes(data)), f"{kinds[node]} {graph.Tensors(operators[node].Outputs(0)).Name().decode()}"


def planted_coreml(artifact: LoadedArtifact, place: float, alter: Altered) -> tuple[LoadedArtifact, str]:
    from coremltools.proto import Model_pb2

    program: Any = Model_pb2.Model()
    program.ParseFromString(artifact.files["Data/com.apple.CoreML/model.mlmodel"])
    function = program.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    constants = {operation.outputs[0].name: operation for operation in operations if operation.type == "const"}
    nodes = [operation for operation in operations if operation.type in PLANTED[artifact.spec.name]]
    node = nodes[round(place * (len(nodes) - 1))]
    value = constants[node.inputs["weight"].arguments[0].name].attributes["val"]
    path = next(path for path in artifact.files if path.endswith("weight.bin"))
    blob = artifact.files[path]
    # MILBlob's header of an entry: sentinel, dtype, bytes, where they begin.
    _, kind, size, start = struct.unpack_from("<IIQQ", blob, value.blobFileValue.offset)
    dtype = {1: np.float16, 2: np.float32}[kind]
    shape = [edge.constant.size for edge in value.type.tensorType.dimensions]
    weights = np.frombuffer(blob[start : start + size], dtype).reshape(shape)
    changed = np.ascontiguousarray(alter(weights)).tobytes()
    files = {**artifact.files, path: blob[:start] + changed + blob[start + size :]}
    return replace(artifact, files=files), node.outputs[0].name


PLANTERS = {"onnx": planted_onnx, "ort": planted_onnx, "tflite": planted_tflite, "coreml": planted_coreml}


def altered(artifact: LoadedArtifact, data: bytes) -> LoadedArtifact:
    return replace(artifact, files={"": data})


def reference_of(artifact: LoadedArtifact, made: dict[str, LoadedArtifact]) -> LoadedArtifact:
    # An ORT file holds the ONNX graph after onnxruntime's first optimisations.
    return made[f"{artifact.spec.format}-fp32"]


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", PLANTED)
def test_the_altered_operation_is_named(name: str, place: float, made: dict[str, LoadedArtifact], pictures: np.ndarray) -> None:
    wrong, culprit = PLANTERS[made[name].spec.format](made[name], place, reversed_channels)
    found = first_divergence(wrong, reference_of(made[name], made), pictures[:4])
    assert isinstance(found, Divergence)
    assert found.name == culprit
    assert found.operator in PLANTED[name]
    assert found.cosine_before > 0.95 > found.cosine_after
    assert found.compared > 0.7 * found.operations
    assert culprit in str(found)


@pytest.mark.parametrize("name", [*PLANTED, *OTHERS])
def test_a_healthy_artifact_has_nothing_to_name(name: str, made: dict[str, LoadedArtifact], pictures: np.ndarray) -> None:
    assert first_divergence(made[name], reference_of(made[name], made), pictures[:4]) is None


@pytest.mark.parametrize("name", ["onnx-fp32", "onnx-int8", "ort-int8", "tflite-fp32", "tflite-int8"])
def test_an_artifact_agrees_with_itself_as_it_is_written(
    name: str, made: dict[str, LoadedArtifact], pictures: np.ndarray
) -> None:
    assert first_divergence(made[name], None, pictures[:4]) is None
    # However it is run, a wrong weight is the same wrong weight.
    wrong, _ = PLANTERS[made[name].spec.format](made[name], 0.5, reversed_channels)
    assert first_divergence(wrong, None, pictures[:4]) is None


def test_of_two_faults_the_first_is_named(made: dict[str, LoadedArtifact], pictures: np.ndarray) -> None:
    one, culprit = planted_onnx(made["onnx-fp32"], 0.3, reversed_channels)
    both, _ = planted_onnx(one, 0.8, reversed_channels)
    found = first_divergence(both, made["onnx-fp32"], pictures[:4])
    assert found is not None
    assert found.name == culprit


@pytest.mark.parametrize("name", ["onnx-fp32", "tflite-fp32", "coreml-fp16"])
def test_values_that_are_not_finite_are_named_where_they_begin(
    name: str, made: dict[str, LoadedArtifact], pictures: np.ndarray
) -> None:
    wrong, culprit = PLANTERS[made[name].spec.format](made[name], 0.5, not_finite)
    found = first_divergence(wrong, reference_of(made[name], made), pictures[:4])
    assert found is not None
    assert (found.name, found.cosine_after, found.norm_ratio) == (culprit, 0.0, 0.0)


def test_a_wrong_scale_is_named_though_no_cosine_shows_it(made: dict[str, LoadedArtifact], pictures: np.ndarray) -> None:
    wrong, culprit = planted_onnx(made["onnx-fp32"], 0.0, half_as_large)
    found = first_divergence(wrong, made["onnx-fp32"], pictures[:4])
    assert found is not None
    assert found.name == culprit
    assert found.norm_ratio < 0.9


def test_an_operation_without_weights_is_named(made: dict[str, LoadedArtifact], pictures: np.ndarray) -> None:
    import onnx

    model: Any = onnx.load_model_from_string(made["onnx-fp32"].single_file)
    culprit = [node for node in model.graph.node if node.op_type == "Clip"][1]
    # Without its bounds it clips nothing.
    del culprit.input[1:]
    found = first_divergence(altered(made["onnx-fp32"], model.SerializeToString()), made["onnx-fp32"], pictures[:4])
    assert found is not None
    assert (found.operator, found.name) == ("Clip", culprit.name)


def test_a_runtimes_own_fault_is_named(made: dict[str, LoadedArtifact], pictures: np.ndarray) -> None:
    """tflite-runtime 2.14 takes the many scales of a FULLY_CONNECTED operator with dynamic ranges for one."""
    new_only = made["tflite-int8-dynamic"]
    assert first_divergence(new_only, made["tflite-fp32"], pictures[:4]) is None
    found = first_divergence(new_only, made["tflite-fp32"], pictures[:4], runtime="tflite_runtime")
    assert found is not None
    assert found.operator == "FULLY_CONNECTED"


def test_what_cannot_be_looked_into_is_refused(made: dict[str, LoadedArtifact], pictures: np.ndarray) -> None:
    onnx, tflite, coreml = (made[f"{format}-fp32"] for format in ("onnx", "tflite", "coreml"))
    with pytest.raises(ConfigError, match="onnx-fp32 can be compared with another onnx artifact only, not tflite-fp32"):
        first_divergence(onnx, tflite, pictures[:1])
    with pytest.raises(ConfigError, match=r"coreml-fp32: .*a reference is needed"):
        first_divergence(coreml, None, pictures[:1])
    other = replace(onnx, spec=onnx.spec.model_copy(update={"format": "executorch"}))
    with pytest.raises(ConfigError, match="cannot be looked at"):
        first_divergence(other, other, pictures[:1])
    with pytest.raises(ConfigError, match="cannot be looked at in coreml"):
        first_divergence(coreml, coreml, pictures[:1], runtime="coreml")
    for broken in (onnx, tflite, made["ort-int8"]):
        with pytest.raises(RuntimeFailure, match=broken.spec.path):
            first_divergence(altered(broken, broken.single_file[:1000]), broken, pictures[:1])


class TestPairs:
    """How the steps of two graphs are matched."""

    @staticmethod
    def trace(*steps: tuple[str, str, int]) -> Trace:
        made = [
            Step(operator, result, index, result, np.full((2, width), 1.0, np.float32))
            for index, (operator, result, width) in enumerate(steps)
        ]
        return Trace(tuple(made), {})

    @pytest.mark.parametrize(
        ("suspect", "reference", "expected"),
        [
            # The same operators in the same order, whatever the names.
            ([("A", "x", 3), ("B", "y", 4), ("B", "e", 5)], [("A", "p", 3), ("B", "x", 4), ("B", "q", 5)], "xp yx eq"),
            # By name, where an operator was folded into another.
            ([("A", "y", 3), ("C", "e", 5)], [("A", "x", 3), ("B", "y", 3), ("C", "e", 5)], "yy ee"),
            # A name of another shape is no pair; what is left goes by order, operator and shape.
            ([("A", "x", 4), ("B", "y", 4), ("C", "e", 5)], [("A", "p", 4), ("D", "x", 9), ("C", "e", 5)], "xp ee"),
            # Names that a cast has lengthened.
            ([("A", "x_cast_fp16", 4), ("cast", "e", 5)], [("Z", "x", 4), ("A", "e", 5)], "x_cast_fp16x ee"),
        ],
    )
    def test_by_structure_name_and_order(self, suspect: Any, reference: Any, expected: str) -> None:
        found = pairs(self.trace(*suspect), self.trace(*reference))
        assert " ".join(one.result + other.result for one, other in found) == expected

    def test_equal_embeddings_diverge_nowhere(self) -> None:
        one = self.trace(("A", "x", 3), ("B", "e", 5))
        assert diverging_step(one, one, 0.99999) is None


@pytest.fixture
def bundle(
    source: Run,
    model: RunModel,
    pictures: np.ndarray,
    trust: tuple[SigningKey, TrustStore],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """``bundle(artifact, ...)`` writes a signed bundle with these artifacts."""
    monkeypatch.setenv("SAMESPACE_CONFIG_DIR", str(tmp_path / "config"))
    TrustStore.default().add(trust[0].public, "tests")
    reference = embed(model.build(), model.record, pictures)
    probes = ProbeSet(source.probe_images, pictures, reference, reference, source.gallery)

    def write(*artifacts: LoadedArtifact) -> Path:
        path = tmp_path / "phone.samespace"
        entries = [(one.spec.model_copy(update={"artifact_id": artifact_id(one.files)}), dict(one.files)) for one in artifacts]
        files = {**probes.to_files(), "evidence.json": b"[]"}
        write_bundle(path, model=model.record, space=source.space, artifacts=entries, files=files, gates={}, signer=trust[0])
        return path

    return write


def command(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    output = capsys.readouterr()
    return int(end.value.code or 0), output.out, output.err


def test_the_command_names_the_operation(
    made: dict[str, LoadedArtifact], bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, culprit = planted_onnx(made["onnx-int8"], 0.5, reversed_channels)
    path = bundle(made["onnx-fp32"], wrong)
    code, out, _ = command(capsys, f"bisect {path} --artifact onnx-int8")
    assert code == 1
    assert out.startswith(f"onnx-int8 against onnx-fp32, 4 worst probe images:\n{culprit} (Conv, operation ")
    assert "kernels" not in out
    code, out, _ = command(capsys, f"bisect {path} --artifact onnx-int8 --json --probes 2")
    answer = json.loads(out)
    assert (code, answer["divergence"]["name"], answer["agrees_as_written"]) == (1, culprit, False)
    code, out, _ = command(capsys, f"bisect {path} --artifact onnx-fp32")
    assert code == 0
    assert out.startswith("onnx-fp32 agrees with itself without optimisations")


def test_a_changed_file_is_compared_with_a_fresh_conversion(
    made: dict[str, LoadedArtifact],
    source: Run,
    bundle: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    make_run: Callable[..., Path],
) -> None:
    wrong, culprit = planted_onnx(made["onnx-fp32"], 0.5, reversed_channels)
    path = bundle(wrong)
    code, out, _ = command(capsys, f"bisect {path} --artifact onnx --run {source.path}")
    assert code == 1
    assert f"against onnx-fp32 from the run, 4 worst probe images:\n{culprit} (Conv" in out
    # The same fault before and after: the artifact itself cannot show it.
    assert command(capsys, f"bisect {path} --artifact onnx")[0] == 0
    code, _, err = command(capsys, f"bisect {path} --artifact onnx --run {make_run('mixer')}")
    assert (code, "none of its models is that of" in err) == (1, True)
    code, _, err = command(capsys, f"bisect {path} --artifact onnx --run {source.path} --reference onnx")
    assert (code, "exclude each other" in err) == (1, True)


def test_the_guide_runs(
    made: dict[str, LoadedArtifact],
    source: Run,
    bundle: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong, culprit = planted_onnx(made["onnx-int8"], 0.5, reversed_channels)
    folder = bundle(made["onnx-fp32"], wrong).parent
    monkeypatch.chdir(folder)
    (folder / "runs").mkdir()
    (folder / "runs" / "emoji").symlink_to(source.path, target_is_directory=True)
    guide = (Path(__file__).parents[2] / "docs" / "bisect.md").read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", guide, re.DOTALL) for line in block.splitlines()]
    answers = [command(capsys, line.removeprefix("samespace ")) for line in lines]
    # int8 is wrong whatever it is compared with; fp32 is right.
    assert [(code, culprit in out) for code, out, _ in answers] == [(1, True), (1, True), (0, False)]
    (program,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out.startswith(f"Conv {culprit} ")
