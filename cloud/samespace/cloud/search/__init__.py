"""Compatibility-aware architecture search (CMP-NAS): which small network fits best into a large one's space."""

from samespace.cloud.search.config import Search, load_search
from samespace.cloud.search.run import search

__all__ = ["Search", "load_search", "search"]
