"""Running exported artifacts: one small file a runtime, looked up by name in :mod:`samespace.sdk.runtimes.registry`."""

from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
from samespace.sdk.runtimes.registry import RUNTIMES, available, open_runtime, runtimes_for

__all__ = ["RUNTIMES", "LoadedArtifact", "Runtime", "RuntimeOptions", "available", "open_runtime", "runtimes_for"]
