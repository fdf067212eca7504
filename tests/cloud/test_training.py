"""Co-training on real digits: what is written, what depends on what, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from samespace.cloud.evaluation import embed, measure
from samespace.cloud.inputs import normalised
from samespace.cloud.losses import LOSSES, Batch, CompatibilityLoss, Need, Partner, Shape
from samespace.cloud.recipe import Recipe
from samespace.cloud.training import RunDirectory, TrainedRun, read_log, train
from samespace.cloud.training.device import choose_device
from samespace.cloud.training.optimiser import one_cycle
from samespace.cloud.training.order import BatchOrder
from samespace.cloud.training.partners import partner_of
from samespace.cloud.training.tier import build_tier
from samespace.edge.models.registry import build_model
from samespace.sdk.errors import ConfigError, DataError
from samespace.sdk.identity import ModelRecord, digest

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def joint(_folder: Path, recipe_content: Make) -> TrainedRun:
    """The same finished run for all tests of this module: trained once, read afterwards."""
    return _train(recipe_content(), _folder / "joint")


def _train(content: dict[str, Any], folder: Path, **options: Any) -> TrainedRun:
    run = train(Recipe.model_validate(content), folder, **options)
    assert run is not None
    return run


def _only(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**content, "models": {name: content["models"][name] for name in names}}


def _weights(run: TrainedRun | Path, name: str) -> bytes:
    path = run.path if isinstance(run, TrainedRun) else run
    return (path / "models" / f"{name}.safetensors").read_bytes()


def test_every_loss_falls(joint: TrainedRun) -> None:
    log = read_log(joint.path / "log.jsonl")
    assert [record["step"] for record in log] == list(range(1, 13))
    for name in joint.records:
        totals = [record["losses"][name]["total"] for record in log]
        assert np.mean(totals[-3:]) < 0.8 * np.mean(totals[:3]), name


def test_records_rebuild_the_models(joint: TrainedRun) -> None:
    for name, record in joint.records.items():
        stored = ModelRecord.model_validate_json((joint.path / "models" / f"{name}.json").read_text())
        data = _weights(joint, name)
        assert stored == record
        assert record.weights_sha256 == digest(data)
        model = build_model(record.family, record.arguments)
        model.load_state_dict(safetensors.torch.load(data), strict=True)
    assert joint.records["cloud"].role == "cloud"
    assert joint.records["phone"].role == "edge"


def test_space_is_founded_by_the_cloud_model(joint: TrainedRun) -> None:
    assert joint.space.founder_model_id == joint.records["cloud"].model_id
    assert joint.records["cloud"].model_id[2:18] in joint.space.space_id


def test_matrix_is_what_the_written_models_measure(joint: TrainedRun, recipe_content: Make) -> None:
    """Computed again from the files alone: weights, and pictures as a device would prepare them."""
    from samespace.cloud.data import make_split, open_dataset

    config = Recipe.model_validate(recipe_content()).data
    images = open_dataset(config, show=False)
    split = make_split(config, images)
    labels = [[images.items[index].label for index in part] for part in (split.test_query, split.test_gallery)]

    def embedded(name: str, indices: tuple[int, ...]) -> np.ndarray:
        record = joint.records[name]
        model = build_model(record.family, record.arguments)
        model.load_state_dict(safetensors.torch.load(_weights(joint, name)))
        return embed(model, record.preprocess.batch(images.load(index) for index in indices), record.preprocess)

    for query, gallery in (("cloud", "cloud"), ("phone", "cloud"), ("control", "control")):
        again = measure(embedded(query, split.test_query), embedded(gallery, split.test_gallery), *labels)
        assert joint.cell(query, gallery).metrics == again


def test_matrix_has_every_cell_and_the_mapped_control(joint: TrainedRun) -> None:
    cells = {(cell.query, cell.gallery, cell.adapter) for cell in joint.matrix if cell.split == "test"}
    assert cells == {
        ("cloud", "cloud", None),
        ("phone", "phone", None),
        ("phone", "cloud", None),
        ("control", "control", None),
        ("control", "cloud", None),
        ("control", "cloud", "procrustes"),
    }
    for cell in joint.matrix:
        for estimate in cell.metrics.values():
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    with pytest.raises(KeyError, match="was not measured"):
        joint.cell("phone", "control")


def test_probes_are_of_unseen_classes_and_not_in_the_gallery(joint: TrainedRun) -> None:
    from PIL import Image

    probes = joint.path / "probes"
    labels = json.loads((probes / "probes.json").read_text())["labels"]
    gallery_labels = json.loads((probes / "gallery.json").read_text())["labels"]
    gallery = safetensors.numpy.load_file(probes / "gallery.safetensors")["embeddings"]
    classes = json.loads((joint.path / "heads" / "classes.json").read_text())
    assert len(labels) == len(list((probes / "images").iterdir()))
    assert gallery.shape == (len(gallery_labels), joint.space.dim)
    assert not set(labels) & set(classes)
    assert set(labels) <= set(gallery_labels)
    record = joint.records["cloud"]
    model = build_model(record.family, record.arguments)
    model.load_state_dict(safetensors.torch.load(_weights(joint, "cloud")))
    images = [Image.open(path) for path in sorted((probes / "images").iterdir())]
    own = embed(model, record.preprocess.batch(images), record.preprocess)
    assert (own @ gallery.T).max() < 1 - 1e-7  # nobody finds itself


def test_photos_become_small_probes_that_keep_their_orientation_and_nothing_else(recipe_content: Make, tmp_path: Path) -> None:
    from PIL import ExifTags, Image

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a camera"
    generator = np.random.default_rng(0)
    for label in "abcd":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            mode = "CMYK" if number == 1 else "RGB"
            photo = Image.fromarray(pixels).resize((900, 600), Image.Resampling.BICUBIC).convert(mode)
            photo.save(tmp_path / "photos" / label / f"{number}.jpg", quality=95, exif=exif)
    data = {"kind": "folder", "root": str(tmp_path / "photos"), "source_size": 16}
    run = _train(recipe_content(steps=1, data=data), tmp_path / "run")

    images = sorted((run.path / "probes" / "images").iterdir())
    originals = [path.read_bytes() for path in sorted((tmp_path / "photos").rglob("*.jpg"))]
    preprocess = run.records["cloud"].preprocess
    known = preprocess.batch(originals).astype(int)
    assert images
    for path in images:
        with Image.open(path) as probe:
            assert max(probe.size) == 384
            assert dict(probe.getexif()) == {ExifTags.Base.Orientation: 6}
        # Upright, it is one of the photos: what is scaled twice differs a little, what is turned differs a lot.
        assert np.abs(known - preprocess(path.read_bytes())).mean(axis=(1, 2, 3)).min() < 2


def test_same_seed_same_weights_other_seed_others(joint: TrainedRun, recipe_content: Make, tmp_path: Path) -> None:
    again = _train(recipe_content(), tmp_path / "again")
    other = _train(recipe_content(seed=1), tmp_path / "other")
    for name in joint.records:
        assert _weights(again, name) == _weights(joint, name)
        assert _weights(other, name) != _weights(joint, name)


def test_edges_leave_no_trace_in_the_cloud_model(joint: TrainedRun, recipe_content: Make, tmp_path: Path) -> None:
    """Joint training gives the very cloud model that training it alone gives: nothing flows back."""
    alone = _train(_only(recipe_content(), "cloud"), tmp_path / "alone")
    assert _weights(alone, "cloud") == _weights(joint, "cloud")


def test_edge_losses_give_the_cloud_no_gradient(recipe_content: Make) -> None:
    recipe = Recipe.model_validate(recipe_content())
    cloud, phone = build_tier(recipe, "cloud", 6), build_tier(recipe, "phone", 6)
    generator = torch.Generator().manual_seed(0)
    images = normalised(torch.randint(0, 256, (4, 16, 16, 3), generator=generator, dtype=torch.uint8), recipe.source_preprocess)
    labels = torch.tensor([0, 1, 2, 3])
    partner = partner_of(cloud, cloud.observe(images))
    assert phone.needs == {Need.EMBEDDING, Need.HEAD}
    phone(images, labels, partner).total.backward()
    assert all(parameter.grad is None for parameter in cloud.parameters())
    assert all(parameter.grad is not None for parameter in phone.parameters())


def test_control_knows_nothing_of_the_cloud_model(joint: TrainedRun, recipe_content: Make, tmp_path: Path) -> None:
    content = recipe_content()
    content["models"]["cloud"]["arguments"]["width"] = 12
    other = _train(content, tmp_path / "other")
    assert _weights(other, "cloud") != _weights(joint, "cloud")
    assert _weights(other, "phone") != _weights(joint, "phone")
    assert _weights(other, "control") == _weights(joint, "control")


def test_sequential_mode_freezes_the_cloud_model(recipe_content: Make, tmp_path: Path) -> None:
    """Bit-identical, running statistics included: weights and evaluation mode both hold while the edges learn."""
    content = recipe_content(mode="sequential")
    both = _train(content, tmp_path / "both")
    alone = _train(_only(content, "cloud"), tmp_path / "alone")
    assert _weights(both, "cloud") == _weights(alone, "cloud")
    log = read_log(both.path / "log.jsonl")
    assert [(record["stage"], record["step"]) for record in log] == [
        (stage, step) for stage in ("cloud", "edges") for step in range(1, 13)
    ]
    phone = [record["losses"]["phone"]["total"] for record in log if record["stage"] == "edges"]
    assert np.mean(phone[-3:]) < 0.8 * np.mean(phone[:3])


def test_a_loss_of_ones_own_trains(recipe_content: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One class and one registry line, as docs/extending.md says."""

    class Distance(CompatibilityLoss):
        """Squared distance to the partner's embedding, scaled by a learnt factor."""

        needs = frozenset({Need.EMBEDDING})

        def __init__(self, shape: Shape, *, start: float = 1.0) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(start))

        def forward(self, batch: Batch, partner: Partner) -> torch.Tensor:
            return (self.factor.exp() * (batch.embedding - partner.embedding).square().sum(1)).mean()

    monkeypatch.setitem(LOSSES, "distance", Distance)
    content = _only(recipe_content(steps=3, losses={"distance": {"weight": 2.0, "start": 0.5}}), "cloud", "phone")
    run = _train(content, tmp_path / "run")
    assert set(read_log(run.path / "log.jsonl")[0]["losses"]["phone"]) == {"distance", "total"}


def test_finished_run_is_read_not_trained(joint: TrainedRun, recipe_content: Make) -> None:
    before = (joint.path / "log.jsonl").stat().st_mtime_ns
    again = _train(recipe_content(), joint.path)
    assert again == joint
    assert (joint.path / "log.jsonl").stat().st_mtime_ns == before


def test_folder_of_another_recipe_is_refused_with_the_difference(joint: TrainedRun, recipe_content: Make) -> None:
    content = recipe_content(steps=5)
    content["models"]["phone"]["arguments"]["width"] = 6
    with pytest.raises(ConfigError, match=r"differs in steps, models\.phone\.arguments\.width"):
        _train(content, joint.path)


def test_no_resume_starts_over(joint: TrainedRun, recipe_content: Make, tmp_path: Path) -> None:
    shutil.copytree(joint.path, tmp_path / "run")
    run = _train(recipe_content(steps=3), tmp_path / "run", resume=False)
    assert len(read_log(run.path / "log.jsonl")) == 3
    assert _weights(run, "cloud") != _weights(joint, "cloud")


def test_folder_that_is_no_run_is_left_alone(recipe_content: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for resume in (True, False):
        with pytest.raises(ConfigError, match="is not empty and holds no run"):
            _train(recipe_content(), tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="is a file"):
        _train(recipe_content(), tmp_path / "thesis.txt")


def test_two_processes_cannot_train_into_one_folder(recipe_content: Make, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_content())
    with RunDirectory(tmp_path / "run").opened(recipe, resume=True), pytest.raises(ConfigError, match="another process"):
        _train(recipe_content(), tmp_path / "run")


def test_pictures_that_changed_are_noticed(recipe_content: Make, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "digits")
    content = recipe_content(steps=2, data={"kind": "folder", "root": str(tmp_path / "digits"), "source_size": 16})
    run = _train(content, tmp_path / "run")
    (run.path / "matrices.json").unlink()  # as if it had been killed before the end
    for folder in (tmp_path / "digits").iterdir():
        (folder / "000.png").unlink()
    with pytest.raises(ConfigError, match="are not those that the run was started with"):
        _train(content, run.path)


def test_divergence_stops_with_the_culprit_and_leaves_no_results(recipe_content: Make, tmp_path: Path) -> None:
    content = recipe_content()
    content["models"]["phone"]["learning_rate"] = 1e30
    with pytest.raises(ConfigError, match=r"models\.phone .* lower its learning_rate"):
        _train(content, tmp_path / "run")
    assert not (tmp_path / "run" / "models").exists()


def test_model_that_cannot_be_built_is_named_before_data_is_read(recipe_content: Make, tmp_path: Path) -> None:
    content = recipe_content(data={"kind": "folder", "root": str(tmp_path / "nowhere"), "source_size": 16})
    content["models"]["phone"]["arguments"]["widht"] = 3
    with pytest.raises(ConfigError, match=r"models\.phone: .*widht"):
        _train(content, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_data_leaves_nothing_behind(recipe_content: Make, tmp_path: Path) -> None:
    content = recipe_content(data={"kind": "folder", "root": str(tmp_path / "nowhere"), "source_size": 16})
    with pytest.raises(DataError, match="nowhere"):
        _train(content, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unusable_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="device = 'quantum' is not usable here"):
        choose_device("quantum")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.2), (100, 0.3), (7, 0.5), (1, 0.2), (3, 0.01)])
def test_schedule_is_torchs_one_cycle(steps: int, warmup: float) -> None:
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    reference = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.3, total_steps=steps + 1, pct_start=warmup)
    for step in range(steps + 1):
        rate, beta = one_cycle(step, steps + 1, 0.3, warmup)
        assert rate == pytest.approx(optimiser.param_groups[0]["lr"])
        assert beta == pytest.approx(optimiser.param_groups[0]["betas"][0])
        optimiser.step()
        if step < steps:
            reference.step()


def test_batches_are_shuffled_epochs_in_any_order_of_asking() -> None:
    order = BatchOrder(images=10, batch=4, seed=3, stage="joint")
    row = torch.cat([order.indices(step) for step in range(10)])
    for epoch in range(4):
        assert sorted(row[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert row[:10].tolist() != row[10:20].tolist()
    fresh = BatchOrder(images=10, batch=4, seed=3, stage="joint")
    for step in (9, 0, 5):
        assert fresh.indices(step).tolist() == order.indices(step).tolist()
    assert BatchOrder(images=3, batch=8, seed=0, stage="joint").indices(0).shape == (8,)
