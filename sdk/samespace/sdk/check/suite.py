"""The checks of one bundle as a test framework wants them: chosen first, each measured once, and an error that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.app import AppDevice
from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.gate import Gate
from samespace.sdk.check.jobs import choose_jobs
from samespace.sdk.check.measure import measure
from samespace.sdk.check.render import foot, plain, reasons
from samespace.sdk.check.report import CompatibilityReport
from samespace.sdk.devices import open_device
from samespace.sdk.embedder import Embedder
from samespace.sdk.probes import ProbeSet

__all__ = ["Suite"]


@dataclass(eq=False)
class Suite:
    """What is checked of a bundle on this machine. Make it with :meth:`open`.

    Attributes:
        path: of the bundle.
        jobs: (artifact name, runtime, why it is not checked) of each check; the runtime is empty where there is a reason.
        allow_inconclusive: whether :meth:`expect` lets pass what too few images decide.
    """

    path: Path
    bundle: Bundle
    probes: ProbeSet
    gallery: GallerySample
    jobs: tuple[tuple[str, str, str], ...]
    allow_inconclusive: bool = False
    _reports: dict[tuple[str, str], CompatibilityReport] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        path: Path,
        artifacts: Sequence[str] = (),
        runtimes: Sequence[str] = (),
        gallery: Path | None = None,
        *,
        allow_unsigned: bool = False,
        allow_inconclusive: bool = False,
    ) -> Suite:
        """Open a bundle and choose the checks.

        Raises:
            SamespaceError: the bundle cannot be opened, or something that was named cannot be checked here.
        """
        bundle = Bundle.open(path, allow_unsigned=allow_unsigned)
        probes = ProbeSet.from_bundle(bundle)
        sample = GallerySample.from_probes(probes, bundle.manifest) if gallery is None else GallerySample.from_file(gallery)
        sample.comparable(bundle.manifest)
        chosen, unchecked = choose_jobs(bundle, open_device(), runtimes, artifacts)
        jobs = [(bundle.artifact(artifact).spec.name, runtime, "") for artifact, runtime in chosen]
        jobs += [(name, "", why) for name, why in unchecked]
        return cls(path, bundle, probes, sample, tuple(jobs), allow_inconclusive)

    def embedder(self) -> Embedder:
        """The first of the checks, open for embedding; the caller closes it."""
        artifact, runtime, _ = self.jobs[0]
        return Embedder.open(self.bundle, runtime, artifact)

    def report(self, artifact: str | None = None, runtime: str | None = None) -> CompatibilityReport:
        """Measure an artifact in a runtime, by default the first of the checks that fits; each is measured once.

        Raises:
            ConfigError: no such artifact, or no runtime for it.
        """
        if artifact is not None:
            artifact = self.bundle.artifact(artifact).spec.name
        fitting = [job for job in self.jobs if artifact in (None, job[0]) and runtime in (None, job[1]) and not job[2]]
        if fitting:
            artifact, runtime, _ = fitting[0]
        key = (artifact or "", runtime or "")
        if key not in self._reports:
            self._reports[key] = measure(self.bundle, artifact, runtime, gallery=self.gallery, probes=self.probes)
        return self._reports[key]

    def judged(
        self,
        embeddings: npt.NDArray[np.float32],
        tensors: npt.NDArray[np.uint8] | None = None,
        artifact: str | None = None,
    ) -> CompatibilityReport:
        """Measure what other code made of the probe images; by default, as if it ran the first of the checks."""
        app = AppDevice(np.asarray(embeddings, np.float32), tensors, "this test")
        return measure(self.bundle, artifact or self.jobs[0][0], device=app, gallery=self.gallery, probes=self.probes)

    def described(self, report: CompatibilityReport) -> str:
        """All numbers and findings, as text."""
        return plain(report, Gate.of(report).judge(report))

    def expect(self, report: CompatibilityReport) -> None:
        """Raises:
        AssertionError: the verdict is no pass; with its reasons, the diagnosis and the command that repeats it.
        """
        __tracebackhide__ = True
        verdict = Gate.of(report).judge(report)
        if verdict.outcome == "pass" or (verdict.outcome == "inconclusive" and self.allow_inconclusive):
            return
        raise AssertionError("\n".join([reasons(report, verdict), *foot(report)[1:]]))
