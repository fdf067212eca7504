"""A model narrower than its space, from the run to the check: compared on the first coordinates, on both sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samespace.export import export_run, read_run
from samespace.sdk.bundle import Bundle
from samespace.sdk.check import measure
from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.errors import EmbeddingError, SpaceMismatchError
from samespace.sdk.prefix import first_coordinates
from samespace.sdk.probes import ProbeSet
from samespace.sdk.signing import SigningKey, TrustStore

NARROW, WIDE = 6, 16


@pytest.fixture(scope="module")
def bundle(
    make_run: Callable[..., Path], trust: tuple[SigningKey, TrustStore], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    run = read_run(make_run("residual", narrow=NARROW))
    path = tmp_path_factory.mktemp("narrow") / "residual.samespace"
    export_run(run, run.choose(("residual",)), [path], trust[0], artifacts=[("onnx", "fp32")])
    return Bundle.open(path, trust=trust[1])


def test_the_bundle_holds_the_clouds_first_coordinates(bundle: Bundle) -> None:
    probes = ProbeSet.from_bundle(bundle)
    assert (bundle.manifest.model.dim, bundle.manifest.space.dim) == (NARROW, WIDE)
    assert probes.reference.shape[1] == probes.cloud.shape[1] == probes.gallery.shape[1] == NARROW
    assert np.allclose(np.linalg.norm(probes.gallery, axis=1), 1, atol=1e-6)


def test_it_is_checked_against_a_gallery_of_full_width(bundle: Bundle) -> None:
    wide = np.random.default_rng(0).normal(size=(40, WIDE)).astype(np.float32)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    report = measure(bundle, gallery=GallerySample("a gallery", wide))
    assert not report.refused
    assert report.embedding is not None
    cut = measure(bundle, gallery=GallerySample("the same, cut", first_coordinates(wide, NARROW)))
    assert report.retrieval is not None
    assert cut.retrieval is not None
    assert report.retrieval.overlaps == cut.retrieval.overlaps


def test_a_gallery_of_any_other_width_is_refused(bundle: Bundle) -> None:
    rows = np.eye(WIDE - 1, dtype=np.float32)
    with pytest.raises(SpaceMismatchError, match=f"vectors of {WIDE - 1} dimensions"):
        measure(bundle, gallery=GallerySample("a gallery", rows))


def test_first_coordinates_are_a_direction_of_their_own() -> None:
    rows = np.array([[3, 4, 0], [0, 0, 1]], np.float32)
    assert np.allclose(first_coordinates(rows[:1], 2), [[0.6, 0.8]])
    with pytest.raises(EmbeddingError, match="row 1: its first 2 coordinates are zero"):
        first_coordinates(rows, 2)
    with pytest.raises(EmbeddingError, match="have no first 4 coordinates"):
        first_coordinates(rows, 4)
