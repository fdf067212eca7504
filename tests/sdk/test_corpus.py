"""Bundles that older versions wrote still open, and still give the embeddings that stand in them."""

from pathlib import Path

import numpy as np
import pytest

from samespace.sdk import Bundle, Embedder, ProbeSet, TrustStore
from samespace.sdk.check import Gate
from samespace.sdk.metrics import cosine, worst_percentile
from samespace.sdk.runtimes import runtimes_for
from samespace.sdk.signing import PublicKey

CORPUS = Path(__file__).parents[1] / "corpus"
BUNDLES = sorted(CORPUS.glob("bundle-v*"))
#: Each bundle's own artifacts.
ARTIFACTS = {
    "bundle-v1": ["onnx-fp32", "tflite-fp32", "coreml-fp16"],
    "bundle-v2": ["onnx-int8", "ort-fp32", "tflite-int8-dynamic", "coreml-palette6"],
}


def opened(folder: Path, tmp_path: Path) -> Bundle:
    trust = TrustStore(tmp_path / folder.name)
    trust.add(PublicKey.load(folder / "signer.pub.pem"), "corpus")
    return Bundle.open(next(folder.glob("*.samespace")), trust=trust)


@pytest.fixture(params=BUNDLES, ids=lambda folder: folder.name)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    return opened(request.param, tmp_path)


def test_there_is_a_bundle_of_every_format_version(tmp_path: Path) -> None:
    from samespace.sdk.manifest import FORMAT_VERSION

    assert [folder.name for folder in BUNDLES] == [f"bundle-v{version}" for version in range(1, FORMAT_VERSION + 1)]
    for version, folder in enumerate(BUNDLES, 1):
        bundle = opened(folder, tmp_path)
        assert bundle.manifest.format_version == version
        assert [artifact.name for artifact in bundle.artifacts] == ARTIFACTS[folder.name]


@pytest.mark.parametrize(("version", "artifact"), [(name, artifact) for name in ARTIFACTS for artifact in ARTIFACTS[name]])
def test_every_artifact_gives_the_embeddings_it_was_gated_with(version: str, artifact: str, tmp_path: Path) -> None:
    bundle = opened(CORPUS / version, tmp_path)
    probes = ProbeSet.from_bundle(bundle)
    limit = Gate.default(bundle.artifact(artifact).spec.precision).worst_cosine
    runtimes = runtimes_for(bundle.artifact(artifact).spec.format)
    assert runtimes
    for runtime in runtimes:
        with Embedder.open(bundle, artifact=artifact, runtime=runtime) as embedder:
            rows = embedder.embed(probes.images)
        assert worst_percentile(cosine(rows, probes.reference), 1.0) >= limit


def test_preprocessing_gives_the_same_tensors(bundle: Bundle) -> None:
    probes = ProbeSet.from_bundle(bundle)
    np.testing.assert_array_equal(bundle.manifest.model.preprocess.batch(probes.images), probes.golden)
