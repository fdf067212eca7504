"""Edge model families, their shared head and norm tail, and the registry that builds any family by name."""

from samespace.edge.models.head import EmbeddingHead, L2Norm
from samespace.edge.models.macs import Cost, count
from samespace.edge.models.registry import ModelFamily, build_model, families

__all__ = ["Cost", "EmbeddingHead", "L2Norm", "ModelFamily", "build_model", "count", "families"]
