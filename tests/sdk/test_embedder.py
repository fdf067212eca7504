"""The Embedder, with a real ONNX graph in a real bundle, against the model in NumPy."""

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samespace.sdk.embedder import Embedder, unit_norm
from samespace.sdk.errors import ConfigError, EmbeddingError, ImageError, RuntimeFailure, SignatureError
from samespace.sdk.runtimes import registry
from samespace.sdk.runtimes.base import Runtime, RuntimeOptions


@pytest.fixture
def embedder(toy_bundle):
    with Embedder.open(toy_bundle()) as opened:
        yield opened


def test_one_image_in_every_form_gives_the_same_vector(toy, embedder, tmp_path):
    encoded = toy.images[0]
    (tmp_path / "photo.png").write_bytes(encoded)
    image = Image.open(io.BytesIO(encoded))
    forms = [encoded, tmp_path / "photo.png", str(tmp_path / "photo.png"), image, np.asarray(image)]
    vectors = [embedder.embed(form) for form in forms]
    assert np.allclose(vectors[0], toy.embed([encoded], toy.edge)[0], atol=1e-6)
    for vector in vectors:
        assert vector.shape == (toy.dim,)
        assert vector.dtype == np.float32
        assert np.array_equal(vector, vectors[0])


def test_iterables_give_rows_in_order_whatever_the_batch_size(toy, toy_bundle):
    expected = toy.embed(toy.images, toy.edge)
    bundle = toy_bundle()
    for batch_size in (1, 7, 64, 1000):
        with Embedder.open(bundle, options=RuntimeOptions(batch_size=batch_size)) as embedder:
            rows = embedder.embed(iter(toy.images))
            assert rows.shape == expected.shape
            assert np.allclose(rows, expected, atol=1e-6)
            assert np.allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1, atol=1e-6)
            assert np.array_equal(rows, embedder.embed_tensors(toy.preprocess.batch(toy.images)))


def test_arrays_of_arrays_and_nothing_at_all(toy, embedder):
    arrays = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in toy.images[:3]])
    assert np.array_equal(embedder.embed(arrays), embedder.embed(toy.images[:3]))
    assert embedder.embed([]).shape == (0, toy.dim)
    assert embedder.embed([toy.images[0]]).shape == (1, toy.dim)
    assert embedder.embed_tensors(np.empty((0, toy.size, toy.size, 3), np.uint8)).shape == (0, toy.dim)


def test_it_reads_an_iterable_a_batch_at_a_time(toy, toy_bundle):
    drawn = []

    def draw():
        for index, image in enumerate(toy.images):
            drawn.append(index)
            yield image if index < 10 else b"not an image"

    options = RuntimeOptions(batch_size=4)
    with Embedder.open(toy_bundle(), options=options) as embedder, pytest.raises(ImageError, match=r"image 10: <bytes>"):
        embedder.embed(draw())
    assert len(drawn) <= 12


def test_it_says_who_made_its_vectors(toy, toy_bundle):
    bundle = toy_bundle()
    with Embedder.open(bundle) as embedder:
        assert embedder.model_id == toy.model.model_id
        assert embedder.space_id == toy.space.space_id
        assert embedder.artifact_id == bundle.artifacts[0].artifact_id
        assert (embedder.dim, embedder.runtime_name, embedder.preprocess) == (toy.dim, "onnx", toy.preprocess)


@pytest.mark.parametrize("zipped", [False, True])
def test_it_opens_a_path(toy, tmp_path, zipped):
    path = toy.write(tmp_path / ("toy.zip" if zipped else "toy.samespace"))
    with Embedder.open(path, trust=toy.trust) as embedder:
        assert np.allclose(embedder.embed(toy.images[0]), toy.embed(toy.images[:1], toy.edge)[0], atol=1e-6)
    with pytest.raises(SignatureError, match="not trusted here"):
        Embedder.open(str(path))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ({"weights": np.nan}, "embedding 0 holds NaN"),
        ({"weights": 1.0, "scale": np.inf}, "embedding 0 holds infinite"),
        ({"weights": 1.0, "scale": 0.0}, "embedding 0 is all zeros"),
        ({"weights": 1.0, "scale": 3.0}, "embedding 0 has norm 3 instead of 1; the L2 normalisation is missing"),
        ({"weights": 1.0, "scale": 1.004}, "embedding 0 has norm 1.004"),
    ],
)
def test_what_is_no_embedding_is_refused(toy, toy_bundle, graph, message):
    broken = toy.graph(toy.edge * graph.pop("weights"), **graph)
    with Embedder.open(toy_bundle(broken)) as embedder, pytest.raises(EmbeddingError, match=message):
        embedder.embed(toy.images[0])


class _Scripted(Runtime):
    """Answers with given rows."""

    name, format = "scripted", "onnx"

    def __init__(self, artifact, rows):
        super().__init__(artifact, RuntimeOptions(batch_size=2))
        self.rows, self.at, self.closed = rows, 0, 0

    def _infer(self, images):
        self.at += len(images)
        return self.rows[self.at - len(images) : self.at]

    def close(self):
        self.closed += 1


def scripted(toy_bundle, rows):
    bundle = toy_bundle()
    runtime = _Scripted(bundle.artifact("onnx"), rows)
    return Embedder(bundle.manifest, runtime), runtime


def test_the_position_of_a_bad_embedding_counts_over_all_batches(toy, toy_bundle, random_units):
    rows = random_units(5, toy.dim)
    rows[3] = np.nan
    embedder, _ = scripted(toy_bundle, rows)
    with pytest.raises(EmbeddingError, match=r"embedding 3 holds NaN.*1 of 2 in this batch"):
        embedder.embed(toy.images[:5])


def test_slightly_rounded_norms_are_put_right(toy, toy_bundle, random_units):
    embedder, _ = scripted(toy_bundle, random_units(2, toy.dim) * np.float32(1.001))
    assert np.allclose(np.linalg.norm(embedder.embed(toy.images[:2]), axis=1), 1, atol=1e-7)


def test_a_wrong_dimension_is_refused(toy, toy_bundle, random_units):
    embedder, _ = scripted(toy_bundle, random_units(1, toy.dim + 1))
    with pytest.raises(RuntimeFailure, match=r"shape \(1, 13\), expected \(1, 12\)"):
        embedder.embed(toy.images[0])
    with pytest.raises(EmbeddingError, match=r"shape \(n, 12\), got \(1, 13\)"):
        unit_norm(random_units(1, 13), "somebody", dim=12)


def test_closing_is_final_and_happens_once(toy, toy_bundle, random_units):
    embedder, runtime = scripted(toy_bundle, random_units(2, toy.dim))
    with embedder:
        embedder.embed(toy.images[0])
    embedder.close()
    assert runtime.closed == 1
    with pytest.raises(RuntimeFailure, match="closed; open it again"):
        embedder.embed(toy.images[0])


def test_tensors_of_another_shape_are_refused(toy, embedder):
    with pytest.raises(RuntimeFailure, match=r"\(n, 16, 16, 3\)"):
        embedder.embed_tensors(np.zeros((1, 8, 8, 3), np.uint8))


def test_threads_may_share_an_embedder(toy, embedder):
    expected, results = embedder.embed(toy.images), {}

    def work(index):
        results[index] = embedder.embed(toy.images[index::4])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, rows in results.items():
        assert np.allclose(rows, expected[index::4], atol=1e-6)


def test_choosing_artifact_and_runtime(toy_bundle, monkeypatch):
    bundle = toy_bundle()
    for choice in ({"artifact": "onnx-fp32"}, {"artifact": "onnx"}, {"runtime": "onnx"}):
        with Embedder.open(bundle, **choice) as embedder:
            assert embedder.runtime.name == "onnx"
    with pytest.raises(ConfigError, match="onnx-fp32"):
        Embedder.open(bundle, artifact="tflite")
    with pytest.raises(ConfigError, match="no runtime is called 'tensorrt'"):
        Embedder.open(bundle, runtime="tensorrt")
    monkeypatch.setattr(registry.runtime_class("tflite"), "unavailable", classmethod(lambda cls: None))
    with pytest.raises(ConfigError, match=r"'tflite' runs tflite artifacts; .* offers: onnx-fp32"):
        Embedder.open(bundle, runtime="tflite")
    monkeypatch.setattr(registry.runtime_class("onnx"), "unavailable", classmethod(lambda cls: "pip install it"))
    with pytest.raises(ConfigError, match=r"nothing on this machine runs onnx-fp32 of .*: pip install it"):
        Embedder.open(bundle)
    with pytest.raises(ConfigError, match=r"'onnx' does not work on this machine: pip install it"):
        Embedder.open(bundle, runtime="onnx")


def test_a_strangers_bundle_runs_in_a_process_of_its_own(toy, toy_bundle):
    from samespace.sdk.isolation import IsolatedRuntime

    bundle = toy_bundle(signed=False)
    assert not bundle.trusted
    with Embedder.open(bundle) as embedder:
        assert isinstance(embedder.runtime, IsolatedRuntime)
        assert embedder.runtime_name == "onnx"
        assert np.allclose(embedder.embed(toy.images[:4]), toy.embed(toy.images[:4], toy.edge), atol=1e-6)


def test_a_path_that_is_no_image_is_named(embedder, tmp_path):
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        embedder.embed(Path(tmp_path / "missing.png"))
    with pytest.raises(ImageError, match=r"image 0: .*missing.png"):
        embedder.embed([tmp_path / "missing.png"])
