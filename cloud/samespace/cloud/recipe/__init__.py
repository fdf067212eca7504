"""What a training run is made from: a recipe in TOML, read strictly."""

from samespace.cloud.recipe.load import load_recipe
from samespace.cloud.recipe.parts import LossSpec, ModelSpec, OptimiserSpec, QuantiseSpec, SoftmaxSpec
from samespace.cloud.recipe.recipe import Recipe

__all__ = ["LossSpec", "ModelSpec", "OptimiserSpec", "QuantiseSpec", "Recipe", "SoftmaxSpec", "load_recipe"]
