"""What int8 costs in each layer.

Each layer is measured alone: it is int8 and all others stay in float. The other way round, all int8 but one, takes as many
measurements and finds less: where two layers each ruin the embedding, float in either of them changes nothing, and both look
harmless. Alone, a layer shows its whole cost, costs of several layers about add up (rounding errors are independent), and the
artifact's size shows what int8 saves there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from samespace.export.quantisation.judge import Aim, Judgement
from samespace.export.quantisation.trials import Trials

__all__ = ["LayerCost", "sensitivity", "table"]


@dataclass(frozen=True)
class LayerCost:
    """What int8 costs in one layer, and what it saves.

    Attributes:
        layer: as the format calls it.
        judgement: with this layer alone in int8.
        spent: the share of the gate's allowance that goes into it, see :meth:`Aim.spent`.
        saved: share of all that int8 saves in bytes, 0-1.
    """

    layer: str
    judgement: Judgement
    spent: float
    saved: float

    def to_json(self) -> dict[str, Any]:
        recall = self.judgement.recall
        return {
            "layer": self.layer,
            "worst_cosine": self.judgement.worst_cosine,
            "recall": None if recall is None else recall.value,
            "spent": self.spent,
            "saved": self.saved,
        } | ({"refused": self.judgement.refused} if self.judgement.refused else {})


def sensitivity(trials: Trials, aim: Aim) -> tuple[LayerCost, ...]:
    """Every layer's cost, the worst first; of equal ones in the order of the graph."""
    measured: list[tuple[str, Judgement]] = []
    for number, layer in enumerate(trials.layers, 1):
        trials.say(f"layer {number} of {len(trials.layers)}")
        alone = trials.leaving([other for other in trials.layers if other != layer])
        trials.forget(alone)
        measured.append((layer, alone.judgement))
    # With no weights in int8 the file would be as large as fp32's; what markers of ranges add to it is not the layer's.
    saved = [max(0, trials.fp32_bytes - judgement.bytes) for _, judgement in measured]
    total = max(1, sum(saved))
    costs = [
        LayerCost(layer, judgement, aim.spent(judgement), share / total)
        for (layer, judgement), share in zip(measured, saved, strict=True)
    ]
    return tuple(sorted(costs, key=lambda cost: -cost.spent))


def table(costs: Sequence[dict[str, Any]], float_layers: Sequence[str] = ()) -> str:
    """Layer costs in their JSON form as text, the worst first."""
    width = max([5, *(len(cost["layer"]) for cost in costs)])
    lines = [f"{'layer':<{width}}  {'worst-1 % cosine':>16}  {'recall@1':>8}  {'of allowance':>12}  {'of saving':>9}"]
    for cost in costs:
        recall = "-" if cost["recall"] is None else f"{100 * cost['recall']:+.1f}"
        kept = "  float" if cost["layer"] in float_layers else ""
        lines.append(
            f"{cost['layer']:<{width}}  {cost['worst_cosine']:>16.6f}  {recall:>8}  {100 * cost['spent']:>10.1f} %  "
            f"{100 * cost['saved']:>7.1f} %{kept}"
        )
    return "\n".join(lines)
