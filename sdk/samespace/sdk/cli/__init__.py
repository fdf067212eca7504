"""The command line ``samespace``; see :mod:`samespace.sdk.cli.root`."""

from samespace.sdk.cli.root import main

__all__ = ["main"]
