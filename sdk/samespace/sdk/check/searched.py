"""The gallery that a check searches, from what the user named: a file, the URL of a service, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.service import ServiceGallery

__all__ = ["is_url", "read_gallery", "searched"]


def is_url(gallery: str | None) -> bool:
    """Whether a gallery is a running service."""
    return gallery is not None and gallery.startswith(("http://", "https://"))


def read_gallery(gallery: str | None) -> GallerySample | None:
    """The gallery of a file; None where there is none, or it is a service.

    Raises:
        ConfigError: no such file, or not such a file.
    """
    return None if gallery is None or is_url(gallery) else GallerySample.from_file(Path(gallery))


@contextmanager
def searched(
    gallery: str | None, sample: GallerySample | None, bundle: Bundle, artifact: str, runtime: str | None
) -> Iterator[GallerySample | ServiceGallery | None]:
    """The gallery for one check: a service must first admit the artifact under check.

    Args:
        gallery: as the user named it.
        sample: of :func:`read_gallery`.
        bundle: under check.
        artifact: path or name.
        runtime: that the client runs it in on this machine; None takes the first that there is.
    """
    if gallery is None or not is_url(gallery):
        yield sample
        return
    from samespace.sdk.embedder import Embedder
    from samespace.sdk.gallery import GalleryClient

    with (
        Embedder.open(bundle, runtime, artifact, device="") as embedder,
        GalleryClient(gallery, embedder, bundle=bundle) as client,
    ):
        yield ServiceGallery.admitted(client)
