"""When an artifact diverges for no known reason: which of its operations is the first to do so."""

from samespace.export.bisect.compare import Divergence
from samespace.export.bisect.first import first_divergence
from samespace.export.bisect.steps import Step, Trace

__all__ = ["Divergence", "Step", "Trace", "first_divergence"]
