"""Check: measure an artifact on a device in three layers, then judge the numbers."""

from samespace.sdk.check.app import AppDevice
from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.gate import EXIT_CODES, Finding, Gate, Verdict, worst_outcome
from samespace.sdk.check.measure import measure
from samespace.sdk.check.report import CompatibilityReport, Settings
from samespace.sdk.check.service import ServiceGallery

__all__ = [
    "EXIT_CODES",
    "AppDevice",
    "CompatibilityReport",
    "Finding",
    "GallerySample",
    "Gate",
    "ServiceGallery",
    "Settings",
    "Verdict",
    "measure",
    "worst_outcome",
]
