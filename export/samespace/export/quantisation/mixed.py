"""Mixed precision: the layers that int8 hurts most stay in float, as few as the gate needs.

Layers are taken worst first (:mod:`.sensitivity`) until a candidate meets the aim; one that is too large for what is left of
the allowed share is passed over. How many are needed is found by doubling and halving: about 2 log2(k) candidates instead of k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samespace.export.quantisation.judge import Aim
from samespace.export.quantisation.sensitivity import LayerCost
from samespace.export.quantisation.trials import Trial, Trials

__all__ = ["FLOAT_SHARE", "Mixed", "keep_worst_in_float"]

#: Of the bytes that int8 saves, so much may be given back: at a quarter the artifact is still 2.3 times smaller than fp32.
FLOAT_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Mixed:
    """What was chosen.

    Attributes:
        trial: the artifact.
        share: of the bytes that int8 saves, what the float layers give back.
        met: whether the aim is met; if not, the trial is the best one within the share.
        why: in words.
    """

    trial: Trial
    share: float
    met: bool
    why: str


def keep_worst_in_float(trials: Trials, costs: Sequence[LayerCost], aim: Aim, float_share: float = FLOAT_SHARE) -> Mixed:
    """Leave the fewest of the worst layers in float that meet the aim.

    Args:
        trials: makes and judges candidates.
        costs: of all layers, the worst first.
        aim: on the held-out pictures.
        float_share: the largest share, 0-1, of the bytes that int8 saves that float layers may give back.
    """
    order, shares = _affordable(costs, float_share)

    def keeping(count: int) -> Trial:
        trials.say(f"{count} of {len(costs)} layers in float")
        return trials.leaving(order[:count])

    def chosen(count: int, met: bool, why: str) -> Mixed:
        return Mixed(trials.leaving(order[:count]), sum(shares[:count]), met, why)

    plain = trials.leaving(())
    if aim.met(plain.judgement):
        return chosen(0, True, "plain int8 meets the gate")
    tried = {0: aim.spent(plain.judgement)}
    low, count = 0, 1
    # Doubling, until one meets the aim ...
    while low < len(order):
        count = min(count, len(order))
        trial = keeping(count)
        tried[count] = aim.spent(trial.judgement)
        if aim.met(trial.judgement):
            break
        low, count = count, 2 * count
    else:
        best = min(tried, key=lambda number: (tried[number], number))
        room = f"{100 * float_share:g} % of the weights' bytes in float"
        return chosen(best, False, f"no choice of layers within {room} meets the gate; this is the best of {len(tried)} tried")
    # ... then halving between the last that did not and the first that did.
    while count - low > 1:
        middle = (low + count) // 2
        if aim.met(keeping(middle).judgement):
            count = middle
        else:
            low = middle
    return chosen(count, True, f"the {count} layers that int8 hurts most stay in float: the fewest that meet the gate")


def _affordable(costs: Sequence[LayerCost], float_share: float) -> tuple[list[str], list[float]]:
    """Layers that together stay within the share, the worst first, and what each gives back."""
    order, shares = [], []
    for cost in costs:
        if sum(shares) + cost.saved <= float_share + 1e-9:
            order.append(cost.layer)
            shares.append(cost.saved)
    return order, shares
