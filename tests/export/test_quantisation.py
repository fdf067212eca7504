"""What int8 costs is found layer by layer, and the layers that cost too much stay in float."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from samespace.export import DeviceGraph, Run, export_run, read_run
from samespace.export.formats.onnx import OnnxExporter
from samespace.export.options import ExportOptions
from samespace.export.quantisation import (
    Aim,
    CalibrationSet,
    HeldOut,
    Judgement,
    LayerCost,
    Search,
    Trial,
    calibration_pictures,
    choose_int8,
    keep_worst_in_float,
)
from samespace.export.quantisation.calibration import needs_calibration, spread
from samespace.export.quantisation.sensitivity import table
from samespace.export.torch_runtime import embed
from samespace.sdk.bundle import Bundle
from samespace.sdk.check import Gate
from samespace.sdk.errors import ConfigError, ExportError, ImageError
from samespace.sdk.identity import digest
from samespace.sdk.metrics import Estimate
from samespace.sdk.signing import SigningKey, TrustStore

pytestmark = pytest.mark.timeout(600)

PLANTED = ("body.0.0.first.0", "body.0.0.second.0")
INT8 = [("onnx", "int8")]


@pytest.fixture(scope="module")
def old_run(make_run: Callable[..., Path]) -> Run:
    """A run as an older training wrote it: without calibration pictures."""
    return read_run(make_run("residual"))


@pytest.fixture(scope="module")
def run(calibrated: Run) -> Run:
    """Its model ``plain`` survives int8, and ``planted``, the same function in float, does not."""
    return calibrated


@pytest.fixture(scope="module")
def calibration(run: Run) -> CalibrationSet:
    return calibration_pictures(run).of(run.models["planted"])


# -- which pictures


def test_calibration_pictures_lie_far_from_each_other() -> None:
    angles = np.radians([0, 1, 2, 3, 40, 41, 90, 91])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # From the row nearest to the mean on: the farthest from it, then what is farthest from both.
    assert spread(rows, 3).tolist() == [4, 7, 0]
    assert sorted(spread(rows, 8).tolist()) == list(range(8))
    # Equal pictures are no reason to take one twice.
    assert sorted(spread(np.repeat(rows[:2], 3, axis=0), 6).tolist()) == list(range(6))


def test_the_pictures_that_judge_gave_no_ranges_and_the_choice_is_the_same_every_time(run: Run) -> None:
    model = run.models["plain"]
    first, second = (calibration_pictures(run).of(model) for _ in range(2))
    assert first.about == second.about
    assert first.about["n"] == len(first.tensors) == 48
    assert first.about["held_out"] == len(first.held_out.tensors) == 48
    assert first.about["sha256"] == digest(first.tensors.tobytes())
    judging = {tensor.tobytes() for tensor in first.held_out.tensors}
    assert not judging & {tensor.tobytes() for tensor in first.tensors}
    reference = embed(model.build(), model.record, first.held_out.tensors)
    np.testing.assert_array_equal(first.held_out.reference, reference)


def test_activations_need_calibration_and_weights_alone_do_not() -> None:
    assert [needs_calibration(*pair) for pair in (("onnx", "int8"), ("tflite", "int8"), ("ort", "int8"))] == [True] * 3
    for pair in (("coreml", "int8"), ("onnx", "fp16"), ("tflite", "int8-dynamic"), ("coreml", "palette6")):
        assert not needs_calibration(*pair)


def test_int8_of_an_old_run_is_refused_before_anything_is_converted(old_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no calibration pictures.*--calibration"):
        export_run(old_run, old_run.choose(("residual",)), [tmp_path / "x"], None, artifacts=INT8)


def write(images: Sequence[npt.NDArray[np.uint8]], folder: Path, name: Callable[[int], str]) -> Path:
    for index, image in enumerate(images):
        path = folder / name(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_a_folder_serves_an_old_run_with_labels_and_without_probes(
    old_run: Run, noise_pictures: Callable, tmp_path: Path
) -> None:
    folder = write(noise_pictures(40, 4), tmp_path / "typical", lambda index: f"class {index // 2}/{index % 2}.png")
    (folder / "class 0" / "probe.png").write_bytes(old_run.probe_images[3])
    (folder / "notes.txt").write_text("no picture")
    found = calibration_pictures(old_run, folder)
    assert len(found.sources) == 40
    assert found.labels == tuple(path.parent.name for path in found.sources if isinstance(path, Path))
    assert found.cloud.shape == (40, 16)
    flat = write(noise_pictures(40, 4), tmp_path / "flat", lambda index: f"{index:02}.png")
    assert calibration_pictures(old_run, flat).labels is None


def test_of_a_large_folder_two_pictures_of_a_label_are_taken(old_run: Run, noise_pictures: Callable, tmp_path: Path) -> None:
    folder = write(noise_pictures(300, 5), tmp_path, lambda index: f"{index % 100:03}/{index // 100}.png")
    found = calibration_pictures(old_run, folder)
    assert found.labels is not None
    assert [found.labels.count(label) for label in dict.fromkeys(found.labels)] == [2] * 100


@pytest.mark.parametrize(
    ("count", "said"), [(None, "no such folder"), (20, "20 pictures that can calibrate int8.*32 are the least")]
)
def test_folders_that_cannot_calibrate_are_refused(
    count: int | None, said: str, old_run: Run, noise_pictures: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    if count is not None:
        write(noise_pictures(count, 6), folder, lambda index: f"{index}.png")
    with pytest.raises(ConfigError, match=said):
        calibration_pictures(old_run, folder)
    if count is not None:
        (folder / "broken.png").write_bytes(b"no picture")
        with pytest.raises(ImageError, match=r"broken\.png"):
            calibration_pictures(old_run, folder)


# -- judging


def test_recall_is_that_of_a_search_among_the_other_pictures() -> None:
    rng = np.random.default_rng(2)

    def unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    gallery = unit(rng.normal(size=(60, 6)))
    own = np.arange(20, 60)
    labels = np.append(np.arange(59) // 2, 29)  # thirty pairs
    reference, device = (unit(gallery[own] + rng.normal(size=(40, 6)) * spread) for spread in (0.3, 0.6))
    held_out = HeldOut(np.zeros((40, 8, 8, 3), np.uint8), reference, gallery, own, labels)

    def slow(rows: npt.NDArray[np.float32]) -> list[bool]:
        right = []
        for row, mine in zip(rows, own, strict=True):
            others = [index for index in range(60) if index != mine]
            right.append(labels[max(others, key=lambda index: float(row @ gallery[index]))] == labels[mine])
        return right

    expected = np.mean(slow(device)) - np.mean(slow(reference))
    recall = held_out.judge_rows(device).recall
    assert recall is not None
    assert recall.value == pytest.approx(expected)
    assert expected != 0
    assert held_out.judge_rows(reference).recall == Estimate(0.0, 0.0, 0.0, 40)
    assert replace(held_out, labels=None).judge_rows(device).recall is None


def test_one_query_that_flips_costs_nothing_and_many_do() -> None:
    aim = Aim.of(Gate.default("int8"))
    assert 0.98 < aim.worst_cosine < 1

    def judged(cosine: float, flips: int, n: int = 192) -> Judgement:
        from samespace.sdk.metrics import bootstrap_mean

        return Judgement(n, 0, cosine, 1.0, bootstrap_mean(np.repeat([-1.0, 0.0], [flips, n - flips])))

    assert aim.spent(judged(1.0, 1)) < 0.2
    assert aim.met(judged(0.999, 2))
    assert not aim.met(judged(0.999, 10))
    assert not aim.met(judged(0.97, 0))
    assert not aim.met(replace(judged(1.0, 0), refused="not finite"))


# -- a planted layer


class Planted:
    """What was measured of the planted model, once for all tests."""

    def __init__(self, run: Run, calibration: CalibrationSet) -> None:
        model = run.models["planted"]
        self.exporter, self.held_out, self.dim = _Remembers(), calibration.held_out, model.record.dim
        self.graph = DeviceGraph(model.build(), model.record.preprocess)
        self.options = ExportOptions(calibration=calibration.tensors)
        self.said: list[str] = []
        self.chosen = self.choose(Search())

    def choose(self, search: Search):
        return choose_int8(self.exporter, self.graph, self.options, self.held_out, self.dim, search, self.said.append)


class _Remembers(OnnxExporter):
    """Traces once."""

    def __init__(self) -> None:
        self.float32 = None

    def convert(self, graph, precision, options=ExportOptions()):  # noqa: B008
        if self.float32 is None:
            self.float32 = super().convert(graph, "fp32", options)
        if precision == "fp32":
            return self.float32
        return replace(self.float32, files={"": self.quantise(self.float32.files[""], options)})


@pytest.fixture(scope="module")
def planted(run: Run, calibration: CalibrationSet) -> Planted:
    return Planted(run, calibration)


def test_a_planted_bad_layer_is_found_and_stays_in_float_and_the_gate_is_met(planted: Planted) -> None:
    about = planted.chosen.quantisation
    assert about is not None
    assert about["plain"]["worst_cosine"] < 0.98
    assert about["met"]
    assert about["chosen"]["worst_cosine"] >= 0.985
    assert set(about["float_layers"]) <= set(PLANTED)
    assert about["float_layers"] == planted.chosen.recipe["float_layers"] != []
    worst = [cost["layer"] for cost in about["sensitivity"][:2]]
    assert set(worst) == set(PLANTED)
    assert [cost["spent"] for cost in about["sensitivity"]] == sorted((c["spent"] for c in about["sensitivity"]), reverse=True)
    assert sum(cost["saved"] for cost in about["sensitivity"]) == pytest.approx(1)
    assert 0 < about["share"] <= 0.25
    assert about["plain"]["bytes"] < planted.chosen.size == about["chosen"]["bytes"]
    assert any(text.startswith("layer 1 of") for text in planted.said)
    text = table(about["sensitivity"], about["float_layers"])
    assert text.splitlines()[1].startswith(worst[0])
    assert text.splitlines()[1].endswith("float")


def test_the_same_choice_gives_the_same_bytes(planted: Planted) -> None:
    assert planted.choose(Search()).files == planted.chosen.files


def test_without_a_share_for_float_plain_int8_is_given_back_and_said_to_miss(planted: Planted) -> None:
    plain = planted.choose(Search(float_share=0))
    assert plain.quantisation is not None
    assert (plain.quantisation["met"], plain.quantisation["float_layers"]) == (False, [])
    assert plain.quantisation["sensitivity"] == []
    assert plain.quantisation["why"] == "plain int8 misses the gate"


def test_a_healthy_model_is_not_searched_unless_the_table_is_asked_for(run: Run, planted: Planted) -> None:
    model = run.models["plain"]
    graph, exporter = DeviceGraph(model.build(), model.record.preprocess), _Remembers()
    for search, layers in ((Search(), 0), (Search(table=True), 6)):
        made = choose_int8(exporter, graph, planted.options, planted.held_out, planted.dim, search)
        assert made.quantisation is not None
        assert made.quantisation["met"]
        assert made.quantisation["float_layers"] == []
        assert len(made.quantisation["sensitivity"]) >= layers
        assert bool(made.quantisation["sensitivity"]) == bool(layers)


def test_a_candidate_that_gives_no_embedding_is_the_worst_and_says_why(planted: Planted) -> None:
    class Broken(_Remembers):
        def quantise(self, fp32, options):
            return super().quantise(fp32, options) if options.float_layers else b"nothing"

    exporter = Broken()
    exporter.float32 = planted.exporter.float32
    made = choose_int8(exporter, planted.graph, planted.options, planted.held_out, planted.dim)
    assert made.quantisation is not None
    assert "refuses it" in made.quantisation["plain"]["refused"]
    assert made.quantisation["met"]


# -- the search


class Additive:
    """Layers whose losses add up, as those of independent errors do; nothing is converted."""

    def __init__(self, losses: dict[str, float]) -> None:
        self.losses, self.layers, self.tried = losses, tuple(losses), []
        self.say = lambda text: None

    def leaving(self, float_layers: Sequence[str]) -> Trial:
        self.tried.append(len(float_layers))
        loss = sum(loss for layer, loss in self.losses.items() if layer not in float_layers)
        return Trial(tuple(float_layers), b"", Judgement(100, 0, 1 - loss, 1.0))

    def costs(self, saved: dict[str, float]) -> list[LayerCost]:
        aim = Aim(0.98, 0.01)
        judged = {layer: Judgement(100, 0, 1 - loss, 1.0) for layer, loss in self.losses.items()}
        costs = [LayerCost(layer, judged[layer], aim.spent(judged[layer]), saved[layer]) for layer in self.layers]
        return sorted(costs, key=lambda cost: -cost.spent)


def test_the_fewest_of_the_worst_layers_are_kept() -> None:
    for bad in (0, 1, 2, 5, 13, 40):
        losses = {f"layer {index}": 0.03 - index * 1e-5 if index < bad else 1e-5 for index in range(64)}
        trials = Additive(losses)
        mixed = keep_worst_in_float(trials, trials.costs(dict.fromkeys(losses, 1 / 64)), Aim(0.98, 0.01), 1.0)
        assert mixed.met
        assert mixed.trial.float_layers == tuple(f"layer {index}" for index in range(bad))
        assert mixed.share == pytest.approx(bad / 64)
        assert len(set(trials.tried)) <= 14


def test_layers_too_large_for_the_share_are_passed_over() -> None:
    trials = Additive({"huge": 0.011, "small": 0.010, "tiny": 0.005})
    saved = {"huge": 0.9, "small": 0.06, "tiny": 0.04}
    mixed = keep_worst_in_float(trials, trials.costs(saved), Aim(0.98, 0.01), 0.1)
    assert (mixed.met, mixed.trial.float_layers) == (True, ("small",))
    assert mixed.share == pytest.approx(0.06)


def test_when_nothing_within_the_share_meets_the_gate_the_best_is_given_and_said_to_miss() -> None:
    trials = Additive({"huge": 0.5, "small": 0.3, "tiny": 0.1})
    mixed = keep_worst_in_float(trials, trials.costs({"huge": 0.8, "small": 0.1, "tiny": 0.1}), Aim(0.98, 0.01), 0.15)
    assert not mixed.met
    assert mixed.trial.float_layers == ("small",)
    assert "15 % of the weights' bytes" in mixed.why


# -- from the run to the bundle


@pytest.fixture(scope="module")
def bundle(run: Run, trust: tuple[SigningKey, TrustStore], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("mixed") / "planted.samespace"
    (exported,) = export_run(run, run.choose(("planted",)), [path], trust[0], artifacts=[("onnx", "fp32"), *INT8])
    assert {agreement.artifact for agreement in exported.agreements} == {"onnx-fp32", "onnx-int8"}
    return Bundle.open(path, trust=trust[1])


@pytest.mark.export
def test_the_bundle_says_how_its_int8_came_about(bundle: Bundle, calibration: CalibrationSet) -> None:
    recipe = bundle.artifact("onnx-int8").spec.recipe
    assert recipe["calibration"] == calibration.about
    assert recipe["float_layers"]
    assert "calibration" not in bundle.artifact("onnx-fp32").spec.recipe
    evidence = json.loads(bundle.read("evidence.json"))
    (chosen,) = [entry for entry in evidence if entry.get("kind") == "quantisation"]
    assert chosen["float_layers"] == recipe["float_layers"]
    assert chosen["artifact"] == "onnx-int8"
    (measured,) = [e for e in evidence if e.get("kind") == "export" and e["artifact"] == "onnx-int8"]
    assert measured["worst_cosine"] >= 0.98
    assert measured["failed"] == ""
    assert measured["recall"]["n"] == 64
    assert bundle.manifest.gates["int8"] == {"worst_cosine": 0.98}


@pytest.mark.export
def test_int8_that_misses_its_gate_is_refused_with_what_was_tried(run: Run, tmp_path: Path) -> None:
    path, search = tmp_path / "planted.samespace", Search(float_share=0)
    with pytest.raises(ExportError) as caught:
        export_run(run, run.choose(("planted",)), [path], None, artifacts=INT8, search=search)
    for part in ("planted onnx-int8", "worst-1 % cosine", "below the limit 0.98 for int8", "held-out", "--force"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.export
def test_a_palette_of_4_bits_that_misses_takes_all_with_it(run: Run, tmp_path: Path) -> None:
    artifacts = [("coreml", "fp16"), ("coreml", "palette4")]
    with pytest.raises(ExportError) as caught:
        export_run(run, run.choose(("plain",)), [tmp_path / "plain.samespace"], None, artifacts=artifacts)
    assert "plain coreml-palette4" in str(caught.value)
    assert "0.95 for palette4" in str(caught.value)
    assert "fp16" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
