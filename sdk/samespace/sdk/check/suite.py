"""The checks of one bundle as a test framework wants them: chosen first, each measured once, and an error that says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
from samespace.sdk.devices import Device, open_device
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import ConfigError
from samespace.sdk.probes import ProbeSet

__all__ = ["Suite", "SuiteJob"]

#: The device that is checked on when none is named.
HOST = "host"


class SuiteJob(NamedTuple):
    """One check: artifact name, runtime, why it is not checked (empty when it is), and the device."""

    artifact: str
    runtime: str
    why: str
    device: str = HOST

    @property
    def name(self) -> str:
        """``onnx-fp32[onnx]``, and with the device where that is not this machine: ``onnx-fp32[onnx on a53]``."""
        where = "" if self.device == HOST else f" on {self.device}"
        return f"{self.artifact}[{self.runtime or 'no runtime'}{where}]"


@dataclass(eq=False)
class Suite:
    """What is checked of a bundle, on this machine or on devices. Make it with :meth:`open`, and :meth:`close` it.

    Attributes:
        path: of the bundle.
        jobs: of each check; the runtime is empty where there is a reason not to check.
        allow_inconclusive: whether :meth:`expect` lets pass what too few images decide.
    """

    path: Path
    bundle: Bundle
    probes: ProbeSet
    gallery: GallerySample
    jobs: tuple[SuiteJob, ...]
    allow_inconclusive: bool = False
    _reports: dict[tuple[str, str, str], CompatibilityReport] = field(default_factory=dict)
    _devices: dict[str, Device] = field(default_factory=dict)

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
        devices: Sequence[str] = (HOST,),
    ) -> Suite:
        """Open a bundle and choose the checks on each device; a device starts with the first check that needs it.

        Raises:
            SamespaceError: the bundle cannot be opened, or something that was named cannot be checked there.
        """
        bundle = Bundle.open(path, allow_unsigned=allow_unsigned)
        probes = ProbeSet.from_bundle(bundle)
        sample = GallerySample.from_probes(probes, bundle.manifest) if gallery is None else GallerySample.from_file(gallery)
        sample.comparable(bundle.manifest)
        opened: dict[str, Device] = {}
        jobs: list[SuiteJob] = []
        try:
            for name in dict.fromkeys(devices):
                opened[name] = open_device(name)
                chosen, unchecked = choose_jobs(bundle, opened[name], runtimes, artifacts)
                jobs += [SuiteJob(bundle.artifact(artifact).spec.name, runtime, "", name) for artifact, runtime in chosen]
                jobs += [SuiteJob(artifact, "", why, name) for artifact, why in unchecked]
        except BaseException:
            for device in opened.values():
                device.close()
            raise
        return cls(path, bundle, probes, sample, tuple(jobs), allow_inconclusive, _devices=opened)

    def close(self) -> None:
        """End what the devices started."""
        while self._devices:
            self._devices.popitem()[1].close()

    def embedder(self) -> Embedder:
        """The first of the checks, open for embedding; the caller closes it."""
        artifact, runtime, *_ = next((job for job in self.jobs if not job.why), self.jobs[0])
        return Embedder.open(self.bundle, runtime, artifact)

    def report(self, artifact: str | None = None, runtime: str | None = None, device: str | None = None) -> CompatibilityReport:
        """Measure an artifact in a runtime on a device, by default the first of the checks that fits; each is measured once.

        Raises:
            ConfigError: no such artifact or device, or no runtime for it.
        """
        if artifact is not None:
            artifact = self.bundle.artifact(artifact).spec.name
        wanted = (artifact, runtime, device)
        for job in self.jobs:
            found = (job.artifact, job.runtime, job.device)
            if not job.why and all(want in (None, have) for want, have in zip(wanted, found, strict=True)):
                artifact, runtime, device = found
                break
        device = device or next(iter(self._devices))
        if device not in self._devices:
            raise ConfigError(f"not checked on device {device!r}; there are: {', '.join(self._devices)} (--samespace-device)")
        key = (artifact or "", runtime or "", device)
        if key not in self._reports:
            self._reports[key] = measure(
                self.bundle, artifact, runtime, device=self._devices[device], gallery=self.gallery, probes=self.probes
            )
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
