"""The bars H0-H5, M1, throughput and peers (ALGORITHMS 4.1), judged from cells; pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import hypotheses
import reports
from cells import Cells
from records import Recorder

from samespace.sdk.evidence import EvidenceRecord

__all__ = ["claims"]


def claims(
    cells: Cells,
    macs: Mapping[str, int],
    cloud_macs: int,
    winners: hypotheses.Winners,
    speed: Mapping[str, Any] | None,
    common: dict[str, Any],
) -> list[EvidenceRecord]:
    """All records; one for whose figures a part of the protocol is missing says which.

    Each is made from as many seeds as all of its cells have, the first ones, and says which these are.

    Args:
        cells: what was measured.
        macs: architecture -> multiply-accumulates.
        cloud_macs: of the cloud model.
        winners: of the search; empty without one.
        speed: what ``throughput.py`` wrote; None without.
        common: device, command, commit and seeds of all records.
    """
    fewer = [cells.first(seeds) for seeds in range(len(cells.seeds), 0, -1)]
    found = []
    for name, needed, make in _makers(macs, cloud_macs, winners, speed):
        for few in fewer:
            try:
                found.append(make(few, Recorder({**common, "seeds": few.seeds})))
                break
            except KeyError:
                continue
        else:
            found.append(Recorder(common).missing(name, needed))
    return found


def _makers(
    macs: Mapping[str, int], cloud_macs: int, winners: hypotheses.Winners, speed: Mapping[str, Any] | None
) -> list[tuple[str, str, Callable[[Cells, Recorder], EvidenceRecord]]]:
    """Id, the parts of the protocol that it is made from, and how."""
    return [
        ("H0", "cloud,main", hypotheses.h0),
        ("H1", "search", lambda cells, record: hypotheses.h1(cells, winners, record)),
        ("H1-unsearched", "cloud,main", hypotheses.h1_unsearched),
        ("H1-cotrained", "cloud,main", hypotheses.h1_cotrained),
        ("H2", "main,others", hypotheses.h2),
        ("H3", "main", hypotheses.h3),
        ("H3-neighbours", "main", hypotheses.h3_neighbours),
        ("H4", "main", hypotheses.h4),
        ("H4-spread", "main", hypotheses.h4_spread),
        ("H4-search", "search", lambda cells, record: hypotheses.h4_search(cells, winners, record)),
        ("H5", "cloud,main,search", lambda cells, record: hypotheses.h5(cells, macs, cloud_macs, winners, record)),
        ("recommended", "main,others", hypotheses.recommended),
        ("M1", "prefixes", reports.m1),
        ("unequal-dimensions", "others", reports.unequal),
        ("stationary-head", "prefixes,others", reports.stationary),
        ("co-training", "prefixes,family", reports.family),
        ("slimmable", "prefixes,family", reports.slimmable),
        ("peers", "main,others,peers", reports.peers),
        ("throughput", "throughput", lambda cells, record: reports.throughput(speed, record)),
    ]
