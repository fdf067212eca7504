"""The client library of samespace: open a bundle, embed, search the cloud's gallery, check that it all fits. Never torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from samespace.sdk.bundle import Bundle, write_bundle
    from samespace.sdk.check import CompatibilityReport, Gate, Verdict, measure
    from samespace.sdk.embedder import Embedder
    from samespace.sdk.gallery import GalleryClient
    from samespace.sdk.identity import CompatibilityRecord, ModelRecord, SpaceRecord
    from samespace.sdk.manifest import Artifact, Manifest
    from samespace.sdk.preprocess import ImageSource, Preprocess
    from samespace.sdk.probes import ProbeSet
    from samespace.sdk.runtimes.base import LoadedArtifact, Runtime, RuntimeOptions
    from samespace.sdk.signing import SigningKey, TrustStore

__all__ = [
    "Artifact",
    "Bundle",
    "CompatibilityRecord",
    "CompatibilityReport",
    "Embedder",
    "GalleryClient",
    "Gate",
    "ImageSource",
    "LoadedArtifact",
    "Manifest",
    "ModelRecord",
    "Preprocess",
    "ProbeSet",
    "Runtime",
    "RuntimeOptions",
    "SigningKey",
    "SpaceRecord",
    "TrustStore",
    "Verdict",
    "measure",
    "write_bundle",
]

#: Module -> what is public of it, loaded when first used: the command line's help, and pytest where nobody asks its plug-in for
#: anything, load nothing.
_HOMES = {
    "bundle": ("Bundle", "write_bundle"),
    "check": ("CompatibilityReport", "Gate", "Verdict", "measure"),
    "embedder": ("Embedder",),
    "gallery": ("GalleryClient",),
    "identity": ("CompatibilityRecord", "ModelRecord", "SpaceRecord"),
    "manifest": ("Artifact", "Manifest"),
    "preprocess": ("ImageSource", "Preprocess"),
    "probes": ("ProbeSet",),
    "runtimes.base": ("LoadedArtifact", "Runtime", "RuntimeOptions"),
    "signing": ("SigningKey", "TrustStore"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
