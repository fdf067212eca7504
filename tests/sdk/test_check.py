"""The check: what it must let pass, and each fault that it must catch, on real bundles with real graphs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from samespace.edge.devices import HostDevice, load_profile, profile_names
from samespace.edge.devices.profile import parse_profile
from samespace.sdk.check import CompatibilityReport, GallerySample, Gate, ServiceGallery, Settings, measure
from samespace.sdk.check.gate import EXIT_CODES, worst_outcome
from samespace.sdk.check.hard import hard_queries
from samespace.sdk.check.render import plain, table
from samespace.sdk.check.retrieval import measure_retrieval
from samespace.sdk.devices import Device, DeviceRun, device_names, open_device
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import ConfigError, FormatVersionError, GalleryError, SpaceMismatchError
from samespace.sdk.metrics import average_precision, cosine, first_match_rank, neighbour_overlap

QUICK = Settings(n_boot=300)


def judged(report, **limits):
    """The verdict by the default gate of the report (with other limits), and outcome by name of finding."""
    verdict = Gate.of(report).replaced(**limits).judge(report)
    return verdict, {finding.check: finding.outcome for finding in verdict.findings}


@pytest.fixture(scope="module")
def good(toy, tmp_path_factory):
    return measure(toy.bundle(tmp_path_factory.mktemp("good") / "toy.samespace"), settings=QUICK)


def test_a_faithful_artifact_passes(good):
    verdict, outcomes = judged(good)
    assert verdict.outcome == "pass"
    assert verdict.exit_code == 0
    assert verdict.reasons == ()
    assert set(outcomes) == {"tensor", "probes", "cosine", "overlap", "space", "recall", "hard overlap", "hard recall"}
    assert good.retrieval.recall[1].difference.high == good.retrieval.recall[1].difference.low == 0


def test_the_report_says_what_was_measured_and_how_to_do_it_again(toy, good):
    assert (good.model_id, good.space_id, good.precision) == (toy.model.model_id, toy.space.space_id, "fp32")
    assert good.artifact == "onnx-fp32"
    assert (good.runtime, good.device, good.trusted) == ("onnx", "host", True)
    assert good.runtime_version.startswith("onnxruntime ")
    assert good.signer == toy.signer.key_id
    assert {"system", "machine", "python"} <= set(good.host)
    assert good.reproduce == f"samespace check {good.bundle} --artifact onnx-fp32 --runtime onnx"
    assert good.tensor.exact == good.tensor.n == good.embedding.n == good.retrieval.queries == toy.probes


def test_numbers_are_those_of_the_metrics(toy, toy_bundle):
    noisy = toy.graph(toy.edge, noise=0.4)
    report = measure(toy_bundle(noisy), settings=QUICK)
    probes = toy.probe_set()
    with Embedder.open(toy_bundle(noisy)) as embedder:
        device = embedder.embed(probes.images)
    agreement = cosine(device, probes.reference)
    assert np.allclose(report.embedding.cosine, agreement)
    assert report.embedding.min_cosine == report.embedding.worst[0].value == pytest.approx(agreement.min())
    assert report.embedding.worst[0].probe == agreement.argmin()
    overlap = neighbour_overlap(device, probes.reference, probes.gallery, 10)
    assert report.retrieval.overlap.value == pytest.approx(overlap.mean())
    assert report.retrieval.worst[0].value == overlap.min()
    search = (probes.gallery, probes.probe_labels, probes.gallery_labels)
    old, new = first_match_rank(probes.reference, *search), first_match_rank(device, *search)
    for k in (1, 5):
        comparison = report.retrieval.recall[k]
        assert comparison.device.value == pytest.approx((new <= k).mean())
        assert comparison.reference.value == pytest.approx((old <= k).mean())
        assert comparison.difference.value == pytest.approx((new <= k).mean() - (old <= k).mean())
    assert report.retrieval.mean_average_precision.device.value == pytest.approx(average_precision(device, *search).mean())
    flipped = (old == 1) & (new > 1)
    assert flipped.any()
    assert report.retrieval.negative_flips.value == pytest.approx(flipped.mean())
    verification = report.retrieval.verification
    genuine = np.array([[a == b for b in probes.gallery_labels] for a in probes.probe_labels])
    accepted = device @ probes.gallery.T >= verification.threshold
    assert verification.device_far == pytest.approx(accepted[~genuine].mean())
    assert verification.tar.device.value == pytest.approx(((accepted & genuine).sum(1) / genuine.sum(1)).mean())
    assert ((probes.reference @ probes.gallery.T)[~genuine] >= verification.threshold).mean() <= verification.far


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda toy: toy.graph(toy.edge, bgr=True), id="wrong-channel-order"),
        pytest.param(lambda toy: toy.graph(toy.edge, rotation=toy.rotation), id="rotated"),
        pytest.param(lambda toy: toy.graph(toy.stranger), id="other-model-of-equal-dimension"),
    ],
)
def test_embeddings_of_something_else_fail_in_every_layer(toy, toy_bundle, fault):
    verdict, outcomes = judged(measure(toy_bundle(fault(toy)), settings=QUICK))
    assert verdict.exit_code == 1
    assert {name for name, outcome in outcomes.items() if outcome == "fail"} == {
        "cosine",
        "overlap",
        "recall",
        "hard overlap",
        "hard recall",
    }


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda toy: toy.graph(toy.edge * np.nan), "holds NaN"),
        (lambda toy: toy.graph(toy.edge, scale=0.0), "all zeros"),
        (lambda toy: toy.graph(toy.edge, scale=2.0), "L2 normalisation is missing"),
        (lambda toy: b"no graph at all", "refuses it"),
    ],
)
def test_an_artifact_without_usable_embeddings_fails_and_says_why(toy, toy_bundle, fault, reason):
    report = measure(toy_bundle(fault(toy)), settings=QUICK)
    assert report.embedding is None
    assert report.retrieval is None
    verdict, outcomes = judged(report)
    assert verdict.exit_code == 1
    assert outcomes["runs"] == "fail"
    assert reason in verdict.reasons[0]


def test_what_fails_is_diagnosed_and_what_passes_is_not(toy, toy_bundle, good):
    assert good.diagnosis is None
    golden = toy.preprocess.batch(toy.images)[..., ::-1].astype(float)
    rows = (golden.reshape(-1, 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(-1, 48) / 127.5 - 1) @ toy.edge
    bgr = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    report = measure(toy_bundle(toy.graph(toy.edge, bgr=True), probes=toy.probe_set(mistakes={"bgr": bgr})), settings=QUICK)
    assert report.diagnosis[0].name == "bgr"
    assert f"diagnosis: {report.diagnosis[0].name}" in plain(report, judged(report)[0])
    strange = measure(toy_bundle(toy.graph(toy.edge, rotation=toy.rotation), probes=toy.probe_set(mistakes={})), settings=QUICK)
    assert strange.diagnosis
    assert "bgr" not in {suspect.name for suspect in strange.diagnosis}
    without_norm = measure(toy_bundle(toy.graph(toy.edge, scale=2.0)), settings=QUICK)
    assert without_norm.diagnosis is not None
    # Nothing is wrong, there is only too little of it.
    fields = {name: getattr(toy.probe_set(), name)[:20] for name in ("images", "golden", "reference", "cloud", "probe_labels")}
    few = measure(toy_bundle(probes=toy.probe_set(**fields, mistakes={})), settings=QUICK)
    assert few.diagnosis == ()


def test_noise_with_a_high_mean_cosine_is_caught_by_the_neighbours(toy, toy_bundle):
    # A gallery of near duplicates of each probe: what a photo library looks like, and where a little noise reshuffles all.
    generator = np.random.default_rng(5)
    centres = np.repeat(toy.embed(toy.images, toy.edge), 40, axis=0)
    gallery = centres + 0.005 * generator.normal(size=centres.shape)
    gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)
    probes = toy.probe_set(gallery=gallery, gallery_labels=tuple(label for label in toy.labels for _ in range(40)))
    report = measure(toy_bundle(toy.graph(toy.edge, noise=0.03), precision="int8", probes=probes), settings=QUICK)
    verdict, outcomes = judged(report)
    assert report.embedding.mean_cosine.low > 0.99
    assert outcomes["cosine"] == "pass"
    assert outcomes["overlap"] == "fail"
    assert verdict.exit_code == 1
    assert "neighbours kept of the 10 nearest" in verdict.reasons[0]


def test_wrong_preprocessing_on_a_device_fails_the_tensor_layer(toy, toy_bundle):
    class Swapped(HostDevice):
        """Decodes BGR, as OpenCV does."""

        def embed(self, bundle, artifact, runtime, images, options):
            run = super().embed(bundle, artifact, runtime, images, options)
            return DeviceRun(run.tensors[..., ::-1], run.embeddings, run.runtime_version)

    class Other(Swapped):
        """Resizes to another size."""

        def embed(self, bundle, artifact, runtime, images, options):
            run = super().embed(bundle, artifact, runtime, images, options)
            return DeviceRun(run.tensors[:, :8], run.embeddings, run.runtime_version)

    for device in (Swapped(), Other()):
        report = measure(toy_bundle(), device=device, settings=QUICK)
        verdict, outcomes = judged(report)
        assert outcomes["tensor"] == "fail"
        assert verdict.exit_code == 1
        assert report.tensor.exact == 0
        assert report.tensor.worst[0].value == report.tensor.max_difference > 0
        assert "differ from the golden ones" in verdict.reasons[0]


def test_a_device_that_answers_nonsense_fails(toy, toy_bundle):
    class Short(HostDevice):
        def embed(self, bundle, artifact, runtime, images, options):
            run = super().embed(bundle, artifact, runtime, images, options)
            return DeviceRun(run.tensors, run.embeddings[:, :5], run.runtime_version)

    report = measure(toy_bundle(), device=Short(), settings=QUICK)
    assert "shape (64, 5), expected (64, 12)" in report.refused
    assert judged(report)[0].exit_code == 1


# One device embedding in 64 is another class's: one query flips.


def flipped(toy, count):
    probes = toy.probe_set()
    device = probes.reference.copy()
    device[:count] = device[1 : count + 1]
    return device


def with_retrieval(good, toy, device, gallery=None, probes=None, settings=QUICK):
    probes = probes or toy.probe_set()
    gallery = gallery or GallerySample.from_probes(probes, SimpleNamespace(space=toy.space))
    return good.model_copy(update={"retrieval": measure_retrieval(device, probes, gallery, settings)})


def test_one_lost_query_of_64_is_inconclusive_and_says_how_many_would_decide(toy, good):
    report = with_retrieval(good, toy, flipped(toy, 1))
    verdict, outcomes = judged(report, overlap=0.5)
    assert outcomes["recall"] == "inconclusive"
    assert verdict.exit_code == 3
    assert report.retrieval.negative_flips.value == 1 / 64
    words = verdict.reasons[0].split("about ")[1].split()
    assert 64 < int(words[0]) < 10_000
    # Reference for the number: z * sd / sqrt(n) = |mean + margin|.
    hits = np.array(report.retrieval.hits.device, float) - np.array(report.retrieval.hits.reference, float)
    assert int(words[0]) == pytest.approx((1.96 * hits.std() / (hits.mean() + 0.005)) ** 2, abs=2)


def test_a_wide_margin_takes_the_same_loss(toy, good):
    _, outcomes = judged(with_retrieval(good, toy, flipped(toy, 1)), overlap=0.5, recall_margin=0.1)
    assert outcomes["recall"] == "pass"


def test_many_lost_queries_fail(toy, good):
    _, outcomes = judged(with_retrieval(good, toy, flipped(toy, 30)))
    assert outcomes["recall"] == "fail"


def test_overlap_across_the_limit_is_inconclusive(toy, good):
    report = with_retrieval(good, toy, flipped(toy, 3))
    _, outcomes = judged(report, overlap=report.retrieval.overlap.value)
    assert outcomes["overlap"] == "inconclusive"


# The hardest queries.


def slow_margins(probes, gallery_labels):
    """Label margins, one query and one item at a time, in float64."""
    margins = []
    for row, label in zip(probes.reference, probes.probe_labels, strict=True):
        scores = [float(np.dot(row.astype(np.float64), item.astype(np.float64))) for item in probes.gallery]
        right = max(score for score, other in zip(scores, gallery_labels, strict=True) if other == label)
        wrong = max(score for score, other in zip(scores, gallery_labels, strict=True) if other != label)
        margins.append(abs(right - wrong))
    return np.array(margins)


def test_the_hardest_queries_are_those_of_the_smallest_margin(toy, toy_bundle):
    report = measure(toy_bundle(toy.graph(toy.edge, noise=0.4)), settings=QUICK)
    margins, hard = slow_margins(toy.probe_set(), toy.gallery_labels), report.retrieval.hard
    assert hard.by == "labels"
    assert set(hard.probe) == set(np.argsort(margins, kind="stable")[:16].tolist())
    assert hard.margin == pytest.approx(np.sort(margins)[15], abs=1e-6)
    rows = np.array(hard.probe)
    assert (np.diff(margins[rows]) > -1e-6).all()
    hits = report.retrieval.hits
    assert hard.overlap.value == pytest.approx(np.array(report.retrieval.overlaps)[rows].mean())
    assert hard.recall.device.value == np.array(hits.device)[rows].mean()
    assert hard.recall.difference.value == pytest.approx(
        (np.array(hits.device, int) - np.array(hits.reference, int))[rows].mean()
    )


def test_small_errors_turn_the_hardest_queries_first(toy, good):
    probes, turned = toy.probe_set(), np.zeros(toy.probes)
    search = (probes.gallery, probes.probe_labels, probes.gallery_labels)
    right, generator = first_match_rank(probes.reference, *search) == 1, np.random.default_rng(0)
    for _ in range(200):
        rows = probes.reference + 0.15 * generator.normal(size=probes.reference.shape)
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        turned += (first_match_rank(rows, *search) == 1) != right
    assert turned[list(good.retrieval.hard.probe)].mean() > 1.5 * turned.mean() > 0


def test_without_labels_the_first_two_ranks_make_the_margin(toy, toy_bundle):
    report = measure(toy_bundle(probes=toy.probe_set(gallery_labels=None)), settings=QUICK)
    probes, hard = toy.probe_set(), report.retrieval.hard
    best = -np.sort(-(probes.reference @ probes.gallery.T).astype(np.float64), axis=1)
    assert (hard.by, hard.recall) == ("ranks", None)
    assert set(hard.probe) == set(np.argsort(best[:, 0] - best[:, 1], kind="stable")[:16].tolist())
    _, outcomes = judged(report)
    assert outcomes["hard overlap"] == "pass"
    assert "hard recall" not in outcomes


def test_a_gallery_without_margins_has_no_hardest_queries(toy, good):
    one = GallerySample("x.npz", toy.probe_set().gallery[:1])
    layer = measure_retrieval(toy.probe_set().reference, toy.probe_set(), one, QUICK)
    assert hard_queries(layer, toy.probe_set(), one, QUICK) is None
    same = GallerySample("x.npz", toy.probe_set().gallery, ("same",) * 200)
    probes = toy.probe_set(probe_labels=("same",) * 64)
    assert hard_queries(measure_retrieval(probes.reference, probes, same, QUICK), probes, same, QUICK) is None


def test_damage_to_near_neighbours_fails_where_all_queries_together_pass(toy, good):
    probes = toy.probe_set()
    gallery = GallerySample.from_probes(probes, SimpleNamespace(space=toy.space))
    device, rows = probes.reference.copy(), list(good.retrieval.hard.probe)
    device[rows] = np.roll(device[rows], 1, axis=0)
    layer = measure_retrieval(device, probes, gallery, QUICK)
    layer = layer.model_copy(update={"hard": hard_queries(layer, probes, gallery, QUICK)})
    report = good.model_copy(update={"retrieval": layer, "precision": "int8"})
    limits = {"overlap": 0.6, "recall_margin": 0.45}
    _, outcomes = judged(report, **limits, hard_overlap=0.5)
    assert (outcomes["overlap"], outcomes["hard overlap"]) == ("pass", "fail")
    assert outcomes["recall"] == outcomes["hard recall"] == "pass"
    verdict, outcomes = judged(report, **limits, hard_margin=0.04, hard_overlap=0.0)
    assert (outcomes["recall"], outcomes["hard recall"], outcomes["hard overlap"]) == ("pass", "fail", "pass")
    assert "of the hardest 16 queries" in verdict.reasons[0]
    # A bundle may ask for more of the hardest queries, too; never for less.
    asked = Gate.of(report.model_copy(update={"gates": {"hard_margin": 0.02, "hard_overlap": 0.1}}))
    assert asked.hard_limits == {"hard_margin": 0.02, "hard_overlap": Gate.of(report).hard_limits["hard_overlap"]}


def test_few_probes_decide_nothing(toy, toy_bundle):
    few = {name: getattr(toy.probe_set(), name)[:20] for name in ("images", "golden", "reference", "cloud", "probe_labels")}
    verdict, outcomes = judged(measure(toy_bundle(probes=toy.probe_set(**few, mistakes={})), settings=QUICK))
    assert (outcomes["probes"], outcomes["recall"]) == ("inconclusive", "inconclusive")
    assert verdict.exit_code == 3
    assert "64 would decide" in verdict.reasons[0]


def test_without_labels_there_is_overlap_only(toy, toy_bundle):
    report = measure(toy_bundle(probes=toy.probe_set(gallery_labels=None)), settings=QUICK)
    assert report.retrieval.recall == {}
    assert report.retrieval.hits is None
    assert report.retrieval.overlap.value == 1
    verdict, outcomes = judged(report)
    assert "recall" not in outcomes
    assert verdict.exit_code == 0
    _, outcomes = judged(
        measure(toy_bundle(toy.graph(toy.stranger), probes=toy.probe_set(gallery_labels=None)), settings=QUICK)
    )
    assert outcomes["overlap"] == "fail"


def test_labels_that_the_gallery_lacks_are_left_out(toy, good):
    probes = toy.probe_set(probe_labels=("elsewhere",) * 4 + toy.labels[4:])
    report = with_retrieval(good, toy, probes.reference, probes=probes)
    assert report.retrieval.queries == 60
    assert report.retrieval.hits.probe == tuple(range(4, 64))
    assert report.retrieval.overlap.n == 64


def test_a_model_of_no_common_space_fails_even_if_its_artifact_is_faithful(toy, toy_bundle):
    # An independently trained model: the device agrees with the reference perfectly, and both find nothing.
    probes = toy.probe_set(reference=toy.embed(toy.images, toy.stranger))
    verdict, outcomes = judged(measure(toy_bundle(toy.graph(toy.stranger), probes=probes), settings=QUICK))
    others = ("tensor", "probes", "cosine", "overlap", "recall", "hard overlap", "hard recall")
    assert outcomes == {**dict.fromkeys(others, "pass"), "space": "fail"}
    assert "train it together with the cloud model" in verdict.reasons[0]


def test_a_gallery_of_another_space_fails(toy, good):
    strange = GallerySample("strange.npz", toy.embed(toy.gallery_images, toy.stranger), toy.gallery_labels)
    verdict, outcomes = judged(with_retrieval(good, toy, toy.probe_set().reference, strange))
    assert outcomes["space"] == "fail"
    assert "this gallery is of another space" in verdict.reasons[0]


def test_a_gallery_of_unknown_origin_without_labels_proves_nothing(toy, good):
    unknown = GallerySample("x.npz", toy.embed(toy.gallery_images, toy.stranger))
    verdict, outcomes = judged(with_retrieval(good, toy, toy.probe_set().reference, unknown))
    assert outcomes["space"] == "inconclusive"
    assert verdict.exit_code == 3


def test_a_gallery_with_one_label_proves_nothing(toy, good):
    one = GallerySample("x.npz", toy.probe_set().gallery, ("same",) * 200)
    _, outcomes = judged(with_retrieval(good, toy, toy.probe_set().reference, one, toy.probe_set(probe_labels=("same",) * 64)))
    assert outcomes["space"] == "inconclusive"


def test_gallery_files(toy, toy_bundle, tmp_path):
    path = tmp_path / "gallery.npz"
    embeddings = toy.probe_set().gallery
    np.savez(path, embeddings=embeddings, labels=np.array(toy.gallery_labels), model_id=toy.space.founder_model_id)
    gallery = GallerySample.from_file(path)
    assert gallery.labels == toy.gallery_labels
    report = measure(toy_bundle(), gallery=gallery, settings=QUICK)
    assert report.reproduce.endswith(f"--gallery {path}")
    assert report.retrieval.gallery_model_id == toy.space.founder_model_id
    assert judged(report)[0].exit_code == 0

    other = "m-" + "0" * 32
    np.savez(path, embeddings=embeddings, model_id=other)
    with pytest.raises(SpaceMismatchError, match=rf"embedded by {other}.*founded by {toy.space.founder_model_id}"):
        measure(toy_bundle(), gallery=GallerySample.from_file(path))
    np.savez(path, embeddings=np.eye(3, dtype=np.float32))
    with pytest.raises(SpaceMismatchError, match="vectors of 3 dimensions, the space 'toys' has 12"):
        measure(toy_bundle(), gallery=GallerySample.from_file(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such gallery file"),
        (b"garbage", "not an .npz file"),
        ({"vectors": np.eye(3)}, "expected the arrays 'embeddings'"),
        ({"embeddings": np.eye(3), "labels": np.array(["a"])}, r"3 embeddings, but 'labels' has the shape \(1,\)"),
        ({"embeddings": np.zeros((3, 3))}, "not unit-norm"),
        ({"embeddings": np.array([["a"]])}, "gallery.npz"),
        ({"embeddings": np.array([object()], object)}, "not an .npz file"),
    ],
)
def test_bad_gallery_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "gallery.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(ConfigError, match=message):
        GallerySample.from_file(path)


class FakeService:
    """A gallery client that searches in memory."""

    url = "http://gallery.test"

    def __init__(self, embeddings, labels):
        self.embeddings, self.labels = embeddings, labels

    def search_batch(self, queries, k=10, *, exact=False):
        assert exact
        order = np.argsort(-(np.stack(queries) @ self.embeddings.T), axis=1, kind="stable")[:, :k]
        return [
            [SimpleNamespace(item_id=str(i), score=0.5, metadata={"label": self.labels[i]} if self.labels else {}) for i in row]
            for row in order
        ]


def test_a_service_gives_the_same_figures_as_the_gallery_itself(toy, toy_bundle):
    probes = toy.probe_set()
    service = ServiceGallery(FakeService(probes.gallery, toy.gallery_labels), toy.space.founder_model_id, 200)
    bundle = toy_bundle(toy.graph(toy.edge, noise=0.4))
    by_service, by_sample = (measure(bundle, gallery=gallery, settings=QUICK).retrieval for gallery in (service, None))
    assert by_service.overlap == by_sample.overlap
    assert by_service.recall == by_sample.recall
    assert by_service.cloud_recall == by_sample.cloud_recall
    assert by_service.negative_flips == by_sample.negative_flips
    assert by_service.hits == by_sample.hits
    assert by_service.hard == by_sample.hard
    assert by_service.mean_average_precision is None


def test_a_service_without_labels_or_without_items(toy, toy_bundle):
    service = ServiceGallery(FakeService(toy.probe_set().gallery, None), toy.space.founder_model_id)
    report = measure(toy_bundle(), gallery=service, settings=QUICK)
    assert report.retrieval.recall == {}
    assert judged(report)[0].exit_code == 0
    empty = ServiceGallery(FakeService(np.empty((0, toy.dim)), []), toy.space.founder_model_id)
    with pytest.raises(GalleryError, match="is empty"):
        measure(toy_bundle(), gallery=empty, settings=QUICK)


def test_reports_survive_json_and_are_judged_again_alike(good, tmp_path):
    good.save(tmp_path / "report.json")
    again = CompatibilityReport.parse((tmp_path / "report.json").read_bytes(), "report.json")
    assert again == good
    assert judged(again)[0] == judged(good)[0]
    strict, _ = judged(again, worst_cosine=1.0)
    assert strict.outcome == ("pass" if good.embedding.worst_cosine >= 1 else "fail")


def test_the_same_settings_give_the_same_numbers(toy_bundle, toy):
    bundle = toy_bundle(toy.graph(toy.edge, noise=0.3))
    first, second = (measure(bundle, settings=QUICK) for _ in range(2))
    assert first.model_copy(update={"created": ""}) == second.model_copy(update={"created": ""})
    other = measure(bundle, settings=QUICK.model_copy(update={"seed": 1}))
    assert other.retrieval.overlap.low != first.retrieval.overlap.low
    assert "--seed 1" in other.reproduce


def test_bad_reports_are_refused(good):
    content = json.loads(good.model_dump_json())
    with pytest.raises(FormatVersionError, match="a report of format 3"):
        CompatibilityReport.parse(json.dumps(content | {"format_version": 3}), "x.json")
    with pytest.raises(ConfigError, match=r"x.json: not a compatibility report \(tensor"):
        CompatibilityReport.parse(json.dumps({name: value for name, value in content.items() if name != "tensor"}), "x.json")
    with pytest.raises(ConfigError, match="surprise"):
        CompatibilityReport.parse(json.dumps(content | {"surprise": 1}), "x.json")
    with pytest.raises(ConfigError):
        CompatibilityReport.parse(b"{", "x.json")


def test_a_bundle_may_ask_for_more_never_for_less(toy, toy_bundle):
    loose = measure(toy_bundle(toy.graph(toy.stranger), gates={"fp32": {"worst_cosine": -1.0, "overlap": 0.0}}), settings=QUICK)
    assert Gate.of(loose) == Gate.default("fp32")
    strict = measure(toy_bundle(gates={"fp32": {"min_probes": 1000}}), settings=QUICK)
    assert judged(strict)[0].exit_code == 3
    with pytest.raises(ConfigError, match=r"unknown limits.*'recall'"):
        Gate.of(measure(toy_bundle(gates={"fp32": {"recall": 1.0}}), settings=QUICK))


def test_limits_of_a_gate_are_checked():
    with pytest.raises(ConfigError, match="no limits for the precision 'int4'"):
        Gate.default("int4")
    with pytest.raises(ConfigError, match="limit overlap"):
        Gate.default("fp32").replaced(overlap=2.0)
    gates = [Gate.default(precision) for precision in ("fp32", "fp16", "int8")]
    assert [gate.worst_cosine for gate in gates] == [0.99999, 0.999, 0.98]
    assert gates[0].recall_margin == 0.005


def test_the_worst_outcome_counts():
    assert worst_outcome(["pass", "inconclusive", "fail"]) == "fail"
    assert worst_outcome(["pass", "inconclusive"]) == "inconclusive"
    assert worst_outcome(["pass"]) == "pass"
    assert EXIT_CODES == {"pass": 0, "fail": 1, "inconclusive": 3}


def test_people_see_numbers_reasons_and_the_command(good, toy, toy_bundle):
    from rich.console import Console

    bad = measure(toy_bundle(toy.graph(toy.edge, bgr=True)), settings=QUICK)
    for report in (good, bad, bad.model_copy(update={"embedding": None, "retrieval": None, "refused": "because [x]"})):
        verdict, _ = judged(report)
        console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(table(report, verdict))
        for text in (plain(report, verdict), console.export_text()):
            assert report.reproduce in text
            assert verdict.outcome.upper() in text
            for finding in verdict.findings:
                assert finding.message in text
            if report.retrieval is not None:
                assert report.retrieval.recall[1].device.text() in text
                assert f"{report.embedding.worst_cosine:.7f}" in text


def test_measuring_asks_for_what_is_missing(toy, toy_bundle, tmp_path):
    with pytest.raises(ConfigError, match="onnx-fp32"):
        measure(toy_bundle(), "tflite")

    class Bare(HostDevice):
        def runtimes(self, format):
            return ()

    with pytest.raises(ConfigError, match=r"device 'host' has no runtime for artifacts/model.fp32.onnx"):
        measure(toy_bundle(), device=Bare())


def test_the_host_is_a_device():
    assert "host" in device_names()
    device = open_device("host")
    assert isinstance(device, Device)
    assert "onnx" in device.runtimes("onnx")
    with pytest.raises(ConfigError, match=r"no device is called 'toaster'; there are: .*host"):
        open_device("toaster")


def test_device_profiles_are_read_strictly():
    for name in profile_names():
        assert load_profile(name).name == name
    with pytest.raises(ConfigError, match="no device profile is called 'x'"):
        load_profile("x")
    text = 'name = "a"\ndescription = ""\nproves = ""\ncannot_prove = ""\nruns.kind = "host"\n'
    assert parse_profile(text, "a.toml", "a").runs.runtimes == ()
    for wrong, message in (
        (text + "threds = 1", "a.toml: field 'threds'"),
        ("= 1", "a.toml: not TOML"),
        ('name = "a"', "field 'description'"),
        (text.replace('"a"', '"b"'), "the profile is named 'b'"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_profile(wrong, "a.toml", "a")
