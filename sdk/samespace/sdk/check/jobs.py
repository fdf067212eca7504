"""Which artifact is checked in which runtime."""

from __future__ import annotations

from collections.abc import Sequence

from samespace.sdk.bundle import Bundle
from samespace.sdk.devices import Device
from samespace.sdk.errors import ConfigError
from samespace.sdk.runtimes.registry import runtime_class, runtimes_for, why_unavailable

__all__ = ["choose_jobs"]


def choose_jobs(
    bundle: Bundle, device: Device, runtimes: Sequence[str] = (), artifacts: Sequence[str] = ()
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """All that the device can check, or what the user named of it.

    Args:
        bundle: whose artifacts are checked.
        device: where.
        runtimes: names; empty means all that fit.
        artifacts: names, paths or formats; empty means all.

    Returns:
        ``(artifact path, runtime)`` of each check, at least one; and ``(artifact name, why not)`` of what nothing here runs.

    Raises:
        ConfigError: something that the user named cannot be checked here, or nothing can.
    """
    for name in runtimes:
        kind = runtime_class(name)
        if name not in device.runtimes(kind.format):
            raise ConfigError(
                f"runtime {name!r} does not work on device {device.name!r}: {why_unavailable(name) or 'it is not there'}"
            )
    specs = [bundle.artifact(name).spec for name in artifacts] if artifacts else list(bundle.artifacts)
    jobs: list[tuple[str, str]] = []
    unchecked: list[tuple[str, str]] = []
    for spec in specs:
        fitting = [name for name in device.runtimes(spec.format) if not runtimes or name in runtimes]
        jobs += [(spec.path, name) for name in fitting]
        if not fitting and not runtimes:
            reasons = "; ".join(f"{name}: {why_unavailable(name)}" for name in runtimes_for(spec.format, installed_only=False))
            if artifacts:
                raise ConfigError(f"nothing on device {device.name!r} runs {spec.name}: {reasons}")
            unchecked.append((spec.name, f"no runtime on device {device.name!r} ({reasons})"))
    if not jobs:
        have = ", ".join(spec.name for spec in specs) or "no artifact"
        raise ConfigError(
            f"{bundle.path}: nothing to check: no runtime of {list(runtimes) or 'this device'} runs {have}; install one, "
            "or choose others with --runtime and --artifact"
        )
    return jobs, unchecked
