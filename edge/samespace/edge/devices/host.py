"""This machine as a device: the check runs the artifacts where it runs itself."""

from __future__ import annotations

from collections.abc import Sequence

from samespace.edge.devices.profile import DeviceProfile, load_profile
from samespace.sdk.bundle import Bundle
from samespace.sdk.devices import DeviceRun, describe_host
from samespace.sdk.embedder import Embedder
from samespace.sdk.errors import RuntimeFailure
from samespace.sdk.runtimes.base import RuntimeOptions
from samespace.sdk.runtimes.registry import runtime_class, runtimes_for

__all__ = ["HostDevice"]


class HostDevice:
    """A :class:`samespace.sdk.devices.Device` that embeds with the :class:`~samespace.sdk.embedder.Embedder` on this machine.

    Args:
        profile: by default the profile ``host``.
    """

    def __init__(self, profile: DeviceProfile | None = None) -> None:
        self.profile = profile or load_profile("host")
        self.name = self.profile.name

    def runtimes(self, format: str) -> tuple[str, ...]:
        """The runtimes that are installed here for artifacts of ``format``, best first."""
        wanted = self.profile.runs.runtimes
        return tuple(name for name in runtimes_for(format) if not wanted or name in wanted)

    def embed(self, bundle: Bundle, artifact: str, runtime: str, images: Sequence[bytes], options: RuntimeOptions) -> DeviceRun:
        """Preprocess and embed encoded images; see :meth:`samespace.sdk.devices.Device.embed`."""
        tensors = bundle.manifest.model.preprocess.batch(images)
        refused, embeddings = "", None
        try:
            with Embedder.open(bundle, runtime, artifact, options, device="") as embedder:
                # As the artifact gives them: what is no embedding, the check refuses and the diagnosis looks at.
                embeddings = embedder.runtime.run(tensors)
        except RuntimeFailure as error:
            refused = str(error)
        return DeviceRun(tensors, embeddings, runtime_class(runtime).version(), refused, describe_host())

    def close(self) -> None:
        """Nothing was started."""
