"""The client library of samespace: open a bundle, embed, search the cloud's gallery, check that it all fits. Never torch."""

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
