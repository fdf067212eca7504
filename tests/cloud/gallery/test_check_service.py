"""``samespace check --gallery URL``: the retrieval layer against a real service."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from fastapi import FastAPI

from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.service import create_app
from samespace.cloud.gallery.stores import open_stores
from samespace.sdk.bundle import Bundle
from samespace.sdk.check import GallerySample, Gate, ServiceGallery, Settings, measure
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import HandshakeRefusedError
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.gallery.client import NewItem
from samespace.sdk.probes import ProbeSet

QUICK = Settings(n_boot=300)


@contextmanager
def connected(app: FastAPI, bundle: Bundle) -> Iterator[GalleryClient]:
    with (
        Embedder.open(bundle) as embedder,
        GalleryClient("http://gallery.test", embedder, bundle=bundle, transport=InProcessTransport(app)) as client,
    ):
        yield client


@pytest.fixture
def app(gallery_world) -> Iterator[FastAPI]:
    """A service whose gallery holds the cloud's vectors of the probes themselves, each picture a class."""
    with open_stores(memory=True) as stores:
        app = create_app(gallery_world.founded(Gallery(stores.registry, stores.index)))
        with connected(app, Bundle.open(gallery_world.bundle("cloud"))) as cloud:
            vectors = gallery_world.embed("cloud", gallery_world.probes)
            cloud.add(NewItem(f"{i:03d}", vector, {"label": f"picture-{i}"}) for i, vector in enumerate(vectors))
        yield app


def test_a_service_gives_the_figures_of_its_vectors(app, gallery_world):
    bundle = Bundle.open(gallery_world.bundle("phone"))
    names = tuple(f"picture-{i}" for i in range(gallery_world.pictures))
    probes = replace(ProbeSet.from_bundle(bundle), probe_labels=names, gallery_labels=names)
    with connected(app, bundle) as client:
        service = ServiceGallery.admitted(client)
        assert (service.model_id, service.items) == (bundle.manifest.space.founder_model_id, len(names))
        report = measure(bundle, gallery=service, probes=probes, settings=QUICK)
    by_file = measure(bundle, gallery=GallerySample.from_probes(probes, bundle.manifest), probes=probes, settings=QUICK)
    assert by_file.retrieval is not None
    assert report.retrieval is not None
    for figure in ("overlap", "recall", "cloud_recall", "negative_flips", "hits"):
        assert getattr(report.retrieval, figure) == getattr(by_file.retrieval, figure)
    assert report.reproduce.endswith("--gallery http://gallery.test")
    assert Gate.of(report).judge(report).outcome == "pass"


def test_a_device_that_the_service_refuses_is_not_measured(app, gallery_world):
    # Wrong channel order in the graph, under the phone's good name: its signed evidence is known, its embeddings do not
    # fit.
    bundle = Bundle.open(gallery_world.bundle("phone", bgr=True))
    with connected(app, bundle) as client:
        client.introduce()
        with pytest.raises(HandshakeRefusedError):
            ServiceGallery.admitted(client)
