"""Probes: what is written is what is read, and a set that does not fit together is refused by name."""

import json

import numpy as np
import pytest

from samespace.sdk.errors import BundleError
from samespace.sdk.probes import ProbeSet


def same(a: ProbeSet, b: ProbeSet) -> bool:
    arrays = ("golden", "reference", "cloud", "gallery")
    return (
        a.images == b.images
        and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
        and a.mistakes.keys() == b.mistakes.keys()
        and all(np.array_equal(a.mistakes[name], b.mistakes[name]) for name in a.mistakes)
        and (a.probe_labels, a.gallery_labels) == (b.probe_labels, b.gallery_labels)
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_probes_survive_files_and_bundle(toy, toy_bundle, labelled):
    probes = toy.probe_set() if labelled else toy.probe_set(probe_labels=None, gallery_labels=None)
    assert same(ProbeSet.from_files(probes.to_files()), probes)
    assert same(ProbeSet.from_bundle(toy_bundle(probes=probes)), probes)
    assert probes.to_files() == ProbeSet.from_files(probes.to_files()).to_files()


def test_more_than_a_thousand_images_keep_their_order(toy):
    n = 1001
    rows = np.repeat(toy.embed(toy.images[:1], toy.edge), n, axis=0)
    images = tuple(toy.images[0] + index.to_bytes(2, "big") for index in range(n))
    golden = np.repeat(toy.preprocess.batch(toy.images[:1]), n, axis=0)
    probes = toy.probe_set(images=images, golden=golden, reference=rows, cloud=rows, mistakes={}, probe_labels=None)
    assert ProbeSet.from_files(probes.to_files()).images == images


def test_golden_tensors_are_what_preprocessing_gives(toy):
    probes = ProbeSet.from_files(toy.probe_set().to_files())
    for image, golden in zip(probes.images, probes.golden, strict=True):
        assert np.array_equal(toy.preprocess(image), golden)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": ()}, "holds no image"),
        ({"images": (b"GIF89a",) * 64}, "probe image 0 is neither PNG nor JPEG"),
        ({"golden": np.zeros((3, 16, 16, 3), np.uint8)}, r"golden.safetensors: expected \(64, s, s, 3\) uint8"),
        ({"golden": np.zeros((64, 16, 16, 3), np.float32)}, "golden.safetensors.*float32"),
        ({"cloud": np.ones((64, 5), np.float32)}, r"reference.safetensors: 'cloud' must be \(64, 12\) float32"),
        ({"reference": np.zeros((64, 12), np.float32)}, "reference.safetensors: model: 64 of 64 rows are not unit-norm"),
        ({"gallery": np.full((3, 12), np.nan, np.float32)}, "gallery.safetensors.*NaN"),
        ({"mistakes": {"bgr": np.ones((65, 12), np.float32)}}, "mistakes.safetensors: 'bgr'"),
        ({"mistakes": {"bgr": np.ones((2, 11), np.float16)}}, "mistakes.safetensors: 'bgr'"),
        ({"probe_labels": ("a",)}, "labels.json: 1 labels for 'probes', which has 64 rows"),
        ({"gallery_labels": ("a",)}, "labels.json: 1 labels for 'gallery', which has 200 rows"),
    ],
)
def test_what_does_not_fit_together_is_refused(toy, changes, message):
    with pytest.raises(BundleError, match=message):
        toy.probe_set(**changes)


@pytest.mark.parametrize(
    ("path", "data", "message"),
    [
        ("probes/golden.safetensors", None, "no probes/golden.safetensors.*export it again"),
        ("probes/reference.safetensors", b"garbage", "reference.safetensors: not a safetensors file"),
        ("probes/reference.safetensors", "golden", "no tensor 'model' in it"),
        ("probes/labels.json", b"{", "labels.json: expected"),
        ("probes/labels.json", b"[]", "labels.json: expected"),
        ("probes/labels.json", json.dumps({"probes": "abc"}).encode(), "lists of strings"),
        ("probes/labels.json", json.dumps({"probes": [1] * 64}).encode(), "lists of strings"),
    ],
)
def test_broken_files_are_named(toy, path, data, message):
    files = toy.probe_set().to_files()
    if data is None:
        del files[path]
    else:
        files[path] = files["probes/golden.safetensors"] if data == "golden" else data
    with pytest.raises(BundleError, match=message):
        ProbeSet.from_files(files)


def test_probes_of_another_size_or_dimension_than_the_model_are_refused(toy, toy_bundle):
    other_size = toy.probe_set(golden=np.zeros((64, 8, 8, 3), np.uint8))
    with pytest.raises(BundleError, match=r"golden.safetensors: tensors of \(8, 8\) pixels"):
        ProbeSet.from_bundle(toy_bundle(probes=other_size))
    short = {name: toy.probe_set().cloud[:, :1] * 0 + 1 for name in ("reference", "cloud")}
    other_dim = toy.probe_set(**short, gallery=np.ones((200, 1), np.float32), mistakes={})
    with pytest.raises(BundleError, match="embeddings of 1 dimensions, the model has 12"):
        ProbeSet.from_bundle(toy_bundle(probes=other_dim))
