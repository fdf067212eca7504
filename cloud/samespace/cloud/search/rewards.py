"""What a candidate is rewarded for; CMP-NAS's R1-R3 (Duggal et al., CVPR 2021, arXiv 2105.06047) and one for releases.

R1 = M(q,q): ordinary search, blind to the partner.
R2 = M(q,g): compatibility alone.
R3 = M(q,q) x M(q,g).
R4 = M(q,g) x (1 - NFR_rel) / latency: few answers get worse when the query side moves from the cloud to the device. NFR_rel is
PCT's relative negative flip rate (arXiv 2011.09161, eq. 11) of q->g against g->g.
"""

from __future__ import annotations

from collections.abc import Callable

from samespace.cloud.search.config import RewardName
from samespace.cloud.search.memo import Candidate

__all__ = ["REWARDS", "best_first"]

#: Name -> value of a candidate that did not fail; more is better.
REWARDS: dict[str, Callable[[Candidate], float]] = {
    "R1": lambda found: found.m_qq,
    "R2": lambda found: found.m_qg,
    "R3": lambda found: found.m_qq * found.m_qg,
    "R4": lambda found: found.m_qg * (1 - found.relative_negative_flips) / found.latency_ms,
}


def best_first(candidates: list[Candidate], reward: RewardName) -> list[Candidate]:
    """Without those that failed; of equal reward the cheaper first, then by key, so that the order is always the same."""
    value = REWARDS[reward]
    return sorted((one for one in candidates if one.error is None), key=lambda one: (-value(one), one.macs, one.key))
