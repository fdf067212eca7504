"""Bundles that older versions wrote still open, and still give the embeddings that stand in them."""

from pathlib import Path

import numpy as np
import pytest

from samespace.sdk import Bundle, Embedder, ProbeSet, TrustStore
from samespace.sdk.check import Gate
from samespace.sdk.metrics import cosine, worst_percentile
from samespace.sdk.signing import PublicKey

CORPUS = Path(__file__).parents[1] / "corpus"
BUNDLES = sorted(CORPUS.glob("bundle-v*"))


@pytest.fixture(params=BUNDLES, ids=lambda folder: folder.name)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    trust = TrustStore(tmp_path / "trusted")
    trust.add(PublicKey.load(request.param / "signer.pub.pem"), "corpus")
    return Bundle.open(next(request.param.glob("*.samespace")), trust=trust)


def test_there_is_a_bundle_of_every_format_version() -> None:
    from samespace.sdk.manifest import FORMAT_VERSION

    assert [folder.name for folder in BUNDLES] == [f"bundle-v{version}" for version in range(1, FORMAT_VERSION + 1)]


@pytest.mark.parametrize("artifact", ["onnx-fp32", "tflite-fp32", "coreml-fp16"])
def test_every_artifact_gives_the_embeddings_it_was_gated_with(bundle: Bundle, artifact: str) -> None:
    probes = ProbeSet.from_bundle(bundle)
    with Embedder.open(bundle, artifact=artifact) as embedder:
        rows = embedder.embed(probes.images)
        limit = Gate.default(bundle.artifact(artifact).spec.precision).worst_cosine
    assert worst_percentile(cosine(rows, probes.reference), 1.0) >= limit


def test_preprocessing_gives_the_same_tensors(bundle: Bundle) -> None:
    probes = ProbeSet.from_bundle(bundle)
    np.testing.assert_array_equal(bundle.manifest.model.preprocess.batch(probes.images), probes.golden)
