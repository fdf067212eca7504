"""Drift: a planted shift is reported, a stationary stream is not, at the rate that is stated."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
from scipy.stats import binom, kstest

from samespace.cloud.gallery.drift import Bucket, DriftMonitor, DriftPolicy, drift_test
from samespace.cloud.gallery.gallery import Gallery
from samespace.cloud.gallery.handshake import HandshakePolicy
from samespace.cloud.gallery.indexes.memory import MemoryIndex
from samespace.cloud.gallery.inprocess import InProcessTransport
from samespace.cloud.gallery.registries.memory import MemoryRegistry
from samespace.cloud.gallery.service import ServiceSettings, create_app
from samespace.sdk.errors import HandshakeRefusedError
from samespace.sdk.gallery import GalleryClient
from samespace.sdk.gallery.client import NewItem

DIM = 16
BUCKET = Bucket("", "s", "m", "pixel", "onnx")


def queries(generator: np.random.Generator, count: int, shift: float = 0.0, *, heavy: bool = False) -> np.ndarray:
    """Unit vectors around three directions, as real queries are; ``shift`` turns all of them a bit the same way."""
    centres = np.eye(3, DIM)[generator.choice(3, count, p=[0.6, 0.3, 0.1])]
    noise = generator.standard_t(2, (count, DIM)) if heavy else generator.normal(size=(count, DIM))
    rows = centres + 0.3 * noise
    rows[:, DIM - 1] += shift
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("heavy", [False, True])
def test_p_values_of_a_stationary_stream_are_uniform_or_larger(heavy: bool) -> None:
    generator = np.random.default_rng(1)
    gallery = queries(generator, 200)
    found = []
    for _ in range(300):
        window = queries(generator, 16, heavy=heavy)
        found.append(drift_test(queries(generator, 48, heavy=heavy), window, gallery, 0.05, generator)[1])
    values = np.asarray(found)
    for level in (0.05, 0.1, 0.3):
        assert (values <= level).sum() <= binom.ppf(0.999, len(values), level)
    assert kstest(values, "uniform", alternative="greater").pvalue > 1e-3


def stream(monitor: DriftMonitor, now: list[float], rows: np.ndarray, bucket: Bucket = BUCKET) -> None:
    for row in rows:
        now[0] += 1
        monitor.observe(bucket, row[None])
    monitor.settle()


def watched(policy: DriftPolicy, gallery: np.ndarray | None) -> tuple[DriftMonitor, list[float]]:
    now = [0.0]
    return DriftMonitor(lambda bucket: gallery, policy, clock=lambda: now[0], seed=0), now


@pytest.mark.parametrize("with_gallery", [True, False])
def test_a_planted_shift_is_reported_and_its_end_too(with_gallery: bool) -> None:
    generator = np.random.default_rng(2)
    policy = DriftPolicy(reference=128, window=32)
    monitor, now = watched(policy, queries(generator, 200) if with_gallery else None)
    stream(monitor, now, queries(generator, 128))
    assert monitor.report()[0].state == "learning"
    stream(monitor, now, queries(generator, 10 * 32))
    (calm,) = monitor.report()
    assert (calm.state, calm.windows, monitor.drifting(BUCKET)) == ("stationary", 10, None)
    stream(monitor, now, queries(generator, 32, shift=1.0))
    (moved,) = monitor.report()
    assert moved.state == "drifting"
    assert moved.p_value <= policy.false_alarm_rate
    assert "unlike its first 128" in monitor.drifting(BUCKET)
    stream(monitor, now, queries(generator, 8 * 32))
    assert monitor.report()[0].state == "stationary"
    monitor.close()


def test_a_stationary_stream_is_reported_no_more_often_than_stated() -> None:
    generator = np.random.default_rng(3)
    policy = DriftPolicy(reference=64, window=16, false_alarm_rate=0.02)
    monitor, now = watched(policy, queries(generator, 100))
    alarms, windows = 0, 0
    for number in range(40):
        bucket = BUCKET._replace(device=f"device-{number}")
        stream(monitor, now, queries(generator, 64), bucket)
        for _ in range(5):
            stream(monitor, now, queries(generator, 16), bucket)
            report = next(b for b in monitor.report() if b.device == bucket.device)
            alarms += report.p_value <= policy.false_alarm_rate
            windows += 1
    assert alarms <= binom.ppf(0.999, windows, policy.false_alarm_rate)
    monitor.close()


def test_buckets_are_apart_bounded_and_of_their_tenant() -> None:
    generator = np.random.default_rng(4)
    monitor, now = watched(DriftPolicy(reference=8, window=8, buckets=3), None)
    for number in range(5):
        stream(monitor, now, queries(generator, 4), BUCKET._replace(device=str(number), tenant="a" if number else "b"))
    assert [(b.device, b.queries) for b in monitor.report()] == [("1", 4), ("2", 4), ("0", 4)]
    assert [b.device for b in monitor.report("a")] == ["1", "2"]
    monitor.close()


def test_only_a_sample_is_looked_at() -> None:
    generator = np.random.default_rng(5)
    now = [0.0]
    monitor = DriftMonitor(lambda bucket: None, DriftPolicy(seconds=1.0), clock=lambda: now[0])
    for _ in range(100):
        now[0] += 0.1
        monitor.observe(BUCKET, queries(generator, 50))
    assert 9 <= monitor.report()[0].queries <= 11
    monitor.close()


@pytest.mark.parametrize("policy", ["warn", "refuse"])
def test_a_drifting_device_is_warned_or_refused(gallery_world, policy: str) -> None:
    gallery = gallery_world.founded(Gallery(MemoryRegistry(), MemoryIndex(), policy=HandshakePolicy(drifting=policy)))
    app = create_app(gallery, ServiceSettings(drift=DriftPolicy(reference=40, window=24, seconds=0.0)))
    transport = InProcessTransport(app)
    client = GalleryClient.open("http://gallery", gallery_world.bundle("cloud"), transport=transport)
    images = [gallery_world.picture() for _ in range(64)]
    client.add(NewItem(str(n), image) for n, image in enumerate(images))
    for image in images:
        client.search(image, 1)
    app.state.drift.settle()
    assert app.state.drift.report()[0].state == "stationary"
    # From now on it swaps red and blue: each embedding alone looks sound.
    for row in gallery_world.embed("cloud", images[:24], bgr=True):
        client.search(row, 1)
    app.state.drift.settle()
    admin = httpx.Client(base_url="http://gallery", transport=transport)
    report = admin.get("/v1/drift").json()
    assert (report["false_alarm_rate"], report["buckets"][0]["state"]) == (1e-3, "drifting")
    assert "samespace_drifting{" in admin.get("/metrics").text
    if policy == "refuse":
        with pytest.raises(HandshakeRefusedError, match="drift"):
            client.search(images[0], 1)
    else:
        assert len(client.search(images[0], 1)) == 1
    app.state.drift.close()
