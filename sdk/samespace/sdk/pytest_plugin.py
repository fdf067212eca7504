"""A plug-in for pytest: ``pytest --samespace-bundle phone.samespace`` checks a bundle in your own CI, beside your own tests.

One test for each artifact in each runtime that is installed, here or on each ``--samespace-device``; it fails with the
verdict's reasons and diagnosis. The fixtures ``samespace_bundle``, ``samespace_probes``, ``samespace_gallery``,
``samespace_embedder``, ``samespace_report`` and ``samespace_check`` are for tests of your own. Without the option nothing is
collected, and nothing of samespace is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from samespace.sdk.bundle import Bundle
    from samespace.sdk.check import CompatibilityReport, GallerySample
    from samespace.sdk.check.suite import Suite, SuiteJob
    from samespace.sdk.embedder import Embedder
    from samespace.sdk.probes import ProbeSet

_BUNDLE = "--samespace-bundle"
_SUITE = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("samespace", "samespace: compatibility of a bundle")
    group.addoption(_BUNDLE, metavar="PATH", help="Bundle to check: one test for each artifact and runtime.")
    group.addoption(
        "--samespace-artifact", action="append", metavar="NAME", help="Artifact (onnx-fp32) or format; may be repeated."
    )
    group.addoption("--samespace-runtime", action="append", metavar="NAME", help="Runtime to check in; may be repeated.")
    group.addoption(
        "--samespace-device", action="append", metavar="NAME", help="Device to check on (a53,browser); may be repeated."
    )
    group.addoption("--samespace-gallery", metavar="FILE", help="Gallery, .npz; by default the bundle's sample.")
    group.addoption("--samespace-allow-unsigned", action="store_true", help="Open a bundle that nobody trusted signed.")
    group.addoption(
        "--samespace-allow-inconclusive", action="store_true", help="Do not fail where there are too few images to decide."
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption(_BUNDLE) is not None:
        config.addinivalue_line("markers", "samespace: compatibility of an artifact in a runtime")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Whatever a device started ends with the session."""
    if _SUITE in config.stash:
        config.stash[_SUITE].close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the suite before ``-k`` and ``-m`` choose."""
    if config.getoption(_BUNDLE) is None:
        return
    suite = _suite(config)
    folder = _Checks.from_parent(session, name="samespace", nodeid="samespace")
    for job in suite.jobs:
        item = _Check.from_parent(folder, name=job.name, job=job)
        item.add_marker("samespace")
        items.append(item)


class _Checks(pytest.Collector):
    """Where the checks hang in the tree of tests."""

    def collect(self) -> list[pytest.Item]:
        return []


class _Check(pytest.Item):
    """One artifact in one runtime on one device."""

    def __init__(self, *, job: SuiteJob, **options: Any) -> None:
        super().__init__(**options)
        self._job = job

    def runtest(self) -> None:
        job = self._job
        if job.why:
            pytest.skip(job.why)
        suite = _suite(self.config)
        report = suite.report(job.artifact, job.runtime, job.device)
        self.add_report_section("call", "samespace", suite.described(report))
        suite.expect(report)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The reasons alone: where in samespace they were found helps nobody."""
        from samespace.sdk.errors import SamespaceError

        if isinstance(excinfo.value, AssertionError | SamespaceError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return _suite(self.config).path, None, f"samespace: {self.name}"


@pytest.fixture(scope="session")
def samespace_bundle(request: pytest.FixtureRequest) -> Bundle:
    """The opened bundle; every byte of it is verified."""
    return _wanted(request).bundle


@pytest.fixture(scope="session")
def samespace_probes(request: pytest.FixtureRequest) -> ProbeSet:
    """The bundle's probe images with their golden tensors, reference embeddings and labels."""
    return _wanted(request).probes


@pytest.fixture(scope="session")
def samespace_gallery(request: pytest.FixtureRequest) -> GallerySample:
    """What is searched: the file of ``--samespace-gallery``, or the bundle's sample."""
    return _wanted(request).gallery


@pytest.fixture(scope="session")
def samespace_embedder(request: pytest.FixtureRequest) -> Iterator[Embedder]:
    """The first artifact that is checked, open for embedding."""
    with _wanted(request).embedder() as embedder:
        yield embedder


@pytest.fixture(scope="session")
def samespace_report(request: pytest.FixtureRequest) -> Callable[..., CompatibilityReport]:
    """``samespace_report(artifact=None, runtime=None, device=None)``: what was measured; each is measured once in a session."""
    return _wanted(request).report


@pytest.fixture(scope="session")
def samespace_check(request: pytest.FixtureRequest) -> Callable[..., CompatibilityReport]:
    """``samespace_check(embeddings, tensors=None, artifact=None)``: judge what your own code made of the probe images.

    Embeddings ``(n, d)`` and, if you have them, tensors ``(n, s, s, 3)`` uint8 RGB, in the order of
    ``samespace_probes.images``. The artifact's precision chooses the gate. Fails with the reasons and the
    diagnosis, else returns the report.
    """
    suite = _wanted(request)

    def check(
        embeddings: npt.NDArray[np.float32], tensors: npt.NDArray[np.uint8] | None = None, artifact: str | None = None
    ) -> CompatibilityReport:
        __tracebackhide__ = True
        report = suite.judged(embeddings, tensors, artifact)
        suite.expect(report)
        return report

    return check


def _wanted(request: pytest.FixtureRequest) -> Suite:
    if request.config.getoption(_BUNDLE) is None:
        pytest.fail(f"this test needs {_BUNDLE} PATH; give it on the command line, or in addopts of pytest's settings", False)
    return _suite(request.config)


def _suite(config: pytest.Config) -> Suite:
    """Opened once; a bundle that cannot be checked ends the session with one line."""
    if _SUITE not in config.stash:
        from samespace.sdk.check.suite import Suite
        from samespace.sdk.errors import SamespaceError

        gallery = config.getoption("--samespace-gallery")
        try:
            config.stash[_SUITE] = Suite.open(
                _found(config, str(config.getoption(_BUNDLE))),
                config.getoption("--samespace-artifact") or (),
                config.getoption("--samespace-runtime") or (),
                None if gallery is None else _found(config, gallery),
                allow_unsigned=bool(config.getoption("--samespace-allow-unsigned")),
                allow_inconclusive=bool(config.getoption("--samespace-allow-inconclusive")),
                devices=_devices(config),
            )
        except SamespaceError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[_SUITE]


def _devices(config: pytest.Config) -> list[str]:
    named = config.getoption("--samespace-device") or ["host"]
    return [name.strip() for text in named for name in text.split(",")]


def _found(config: pytest.Config, path: str) -> Path:
    """Seen from where pytest was called, else from the project: in ``addopts`` it is meant so."""
    here = config.invocation_params.dir / path
    return here if here.exists() or not (config.rootpath / path).exists() else config.rootpath / path
