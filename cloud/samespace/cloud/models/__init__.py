"""Cloud model families: what founds a space. They run in data centres, but export like any other."""

from samespace.cloud.models.wide_residual import build as wide_residual

__all__ = ["wide_residual"]
