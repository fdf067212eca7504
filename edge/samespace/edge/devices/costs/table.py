"""Costs as text."""

from __future__ import annotations

from collections.abc import Sequence

from samespace.edge.devices.costs.artifact import ArtifactCosts

__all__ = ["costs_text"]

_HEAD = ("artifact", "file", "parameters", "MACs", "bytes moved", "activations", "memory")
_NO_TIME = "Per image. None of this is a time, and an emulated device's time is none of a phone's: measure that on the phone."


def costs_text(costs: Sequence[ArtifactCosts]) -> str:
    """A table, what is missing in it and why, and a word on time."""
    rows = [_HEAD, *(_row(one) for one in costs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [_aligned(row, widths) for row in rows]
    missing = [f"{one.artifact}: {why}" for one in costs for why in one.left_out]
    return "\n".join([*lines, *missing, _NO_TIME])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *cells = row
    return "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])


def _row(one: ArtifactCosts) -> tuple[str, ...]:
    graph = one.graph
    counted = ("-",) * 4
    if graph is not None:
        counted = (
            f"{graph.parameters / 1e6:.2f} M",
            f"{graph.macs / 1e6:.1f} M",
            _megabytes(graph.bytes_moved),
            _megabytes(graph.peak_activations),
        )
    return (one.artifact, _megabytes(one.file_bytes), *counted, "-" if one.memory is None else _megabytes(one.memory))


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
