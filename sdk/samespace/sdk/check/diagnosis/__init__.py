"""Diagnosis: which known mistake explains that a device's embeddings are not what they should be."""

from samespace.sdk.check.diagnosis.catalogue import CAUSES
from samespace.sdk.check.diagnosis.causes import Cause, Diagnosis
from samespace.sdk.check.diagnosis.diagnose import diagnose

__all__ = ["CAUSES", "Cause", "Diagnosis", "diagnose"]
