"""Maps between spaces that are fitted after training."""

from samespace.cloud.adapters.procrustes import apply_procrustes, fit_procrustes

__all__ = ["apply_procrustes", "fit_procrustes"]
