"""Quantisation-aware fine-tuning of a finished run's edge model, against the float cloud gallery."""

from samespace.cloud.quantisation.quantise import quantise
from samespace.cloud.quantisation.recipe import Settings, quantise_recipe

__all__ = ["Settings", "quantise", "quantise_recipe"]
