"""The mobile search space, its architectures, and the supernet in which all of them share weights."""

from samespace.edge.search.architecture import Architecture, Block
from samespace.edge.search.space import SearchSpace, parse_space
from samespace.edge.search.supernet import Supernet

__all__ = ["Architecture", "Block", "SearchSpace", "Supernet", "parse_space"]
