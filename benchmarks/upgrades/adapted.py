"""Adapters between a model and a stronger one that was trained without regard to it, and the refresh of such a gallery."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cells import Cells
from learnt import Learnt, Rows, material, score_map
from paired import Figure, Resamples
from refresh import SHARES, curve, orders

from samespace.cloud.adapters.fit import Direction, Material, Method, fit, measured
from samespace.cloud.upgrades import judge
from samespace.sdk.adapter import Adapter
from samespace.sdk.metrics import average_precision, pair_scores, recall_at_k

__all__ = ["ADAPTERS", "Adapted", "Refreshed", "adapted", "refreshed"]

#: Name -> method and direction. ``pair, both`` also maps the gallery, which the old model's clients then find as before.
ADAPTERS: dict[str, tuple[Method, Direction]] = {
    "procrustes": ("procrustes", "backward"),
    "ridge": ("ridge", "backward"),
    "low-rank": ("low-rank", "backward"),
    "pair": ("pair", "backward"),
    "ridge, forward": ("ridge", "forward"),
    "network, forward": ("network", "forward"),
}
BOTH = "pair, both"
#: Compatible methods whose mixed galleries are measured, and the control through an adapter.
MIXED = ("bct", "ract", "combined")
METRICS = ("recall@1", "map")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Adapted:
    """What new queries find in the old gallery through each adapter.

    Attributes:
        old: metric -> M(o, o).
        new: adapter -> metric -> M(n, o).
        outcomes: adapter -> what the gate says, a seed each.
    """

    old: dict[str, Figure]
    new: dict[str, dict[str, Figure]]
    outcomes: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Refreshed:
    """Mixed galleries on their way from all old to all new; mAP of new queries.

    Attributes:
        old: M(o, o).
        curves: (gallery, order) -> figures at :data:`refresh.SHARES`.
    """

    old: Figure
    curves: dict[tuple[str, str], list[Figure]]

    def area(self, gallery: str, order: str) -> Figure:
        """The mean of a curve."""
        points = self.curves[gallery, order]
        draws = np.mean([point.draws for point in points], axis=0)
        return Figure(float(np.mean([point.value for point in points])), draws, points[0].n)

    def dip(self, gallery: str, order: str) -> Figure:
        """The lowest point of a curve, above M(o, o)."""
        lowest = min(self.curves[gallery, order], key=lambda point: point.value)
        return lowest - self.old


def adapted(cells: Cells) -> Adapted:
    """Fit and judge all adapters of all repetitions, once."""
    found = [cells.kept(seed, "adapters", lambda seed=seed: _through_all(Learnt(cells, seed))) for seed in cells.seeds]
    resamples = Resamples(len(found), found[0]["old/map"].size)

    def figures(name: str) -> dict[str, Figure]:
        return {metric: resamples.figure([one[f"{name}/{metric}"] for one in found]) for metric in METRICS}

    said = [json.loads(str(one["outcomes"])) for one in found]
    names = (*ADAPTERS, BOTH)
    outcomes = {name: tuple(one[name] for one in said) for name in said[0]}
    return Adapted(figures("old"), {name: figures(name) for name in names}, outcomes)


def refreshed(cells: Cells) -> Refreshed:
    """Measure all curves of all repetitions, once."""
    found = [cells.kept(seed, "refresh", lambda seed=seed: _curves(Learnt(cells, seed))) for seed in cells.seeds]
    resamples = Resamples(len(found), found[0]["old"].size)
    names = [name for name in found[0] if "/" in name]
    curves: dict[tuple[str, str], list[Figure]] = {}
    for name in names:
        gallery, order = name.split("/")
        curves[gallery, order] = [resamples.figure([one[name][point] for one in found]) for point in range(len(SHARES))]
    return Refreshed(resamples.figure([one["old"] for one in found]), curves)


def _through_all(learnt: Learnt) -> dict[str, npt.NDArray]:
    given = material(learnt)
    found: dict[str, npt.NDArray] = {}
    said: dict[str, str] = {}
    for name, (method, direction) in ADAPTERS.items():
        adapters = fit(given, method, direction)
        report = measured(given, adapters)
        outcomes, said[name] = report.outcomes, judge(report).outcome
        found |= {"old/recall@1": np.asarray(outcomes.old.recall1), "old/map": np.asarray(outcomes.old.map)}
        found |= {f"{name}/recall@1": np.asarray(outcomes.new.recall1), f"{name}/map": np.asarray(outcomes.new.map)}
        if method == "pair":
            found |= _both(given, adapters)
    return {**found, "outcomes": np.array(json.dumps(said))}


def _both(given: Material, adapters: dict[Direction, Adapter]) -> dict[str, npt.NDArray]:
    sides = adapters["backward"].apply(given.new.query), adapters["forward"].apply(given.old.gallery)
    labels = list(given.pictures.queries["class"]), list(given.pictures.gallery)
    return {
        f"{BOTH}/recall@1": recall_at_k(*sides, *labels, k=1).astype(np.float64),
        f"{BOTH}/map": average_precision(*sides, *labels),
    }


def _curves(learnt: Learnt) -> dict[str, npt.NDArray]:
    """Compatible models with the old gallery as it is; the control with a gallery that an adapter maps."""
    given = material(learnt)
    adapter = fit(given, "network", "forward")["forward"]
    order = orders(adapter.uncertainty(given.old.gallery), learnt.seed)
    labels = list(given.pictures.queries["class"]), list(given.pictures.gallery)

    def scores(query: Rows, gallery: Rows) -> tuple[Array, npt.NDArray[np.bool_]]:
        found, genuine = pair_scores(query, gallery, *labels)
        return found.astype(np.float64), genuine

    found = {"old": average_precision(given.old.query, given.old.gallery, *labels)}
    new, genuine = scores(given.new.query, given.new.gallery)
    through, _ = scores(given.new.query, adapter.apply(given.old.gallery))
    validation = learnt.rows(("bct", "old"))
    control = learnt.rows(("bct", "control"))
    put = score_map(learnt, control["query"], adapter.apply(validation["gallery"]), control["gallery"])
    found |= _each("adapted", order, lambda one: curve(put(through), new, genuine, one))
    for method in MIXED:
        one = learnt.cells.generation(learnt.seed, method, "cloud")
        own = learnt.rows((method, "cloud"))
        put = score_map(learnt, own["query"], validation["gallery"], own["gallery"])
        across, fresh = scores(one.query, given.old.gallery)[0], scores(one.query, one.gallery)[0]
        found |= _each(method, order, lambda o, put=put, a=across, f=fresh: curve(put(a), f, genuine, o))
        found |= _each(f"{method}, as it is", {"random": order["random"]}, lambda o, a=across, f=fresh: curve(a, f, genuine, o))
    return found


def _each(gallery: str, order: dict[str, list[int]], measure: Callable[[list[int]], Array]) -> dict[str, npt.NDArray]:
    return {f"{gallery}/{name}": measure(items) for name, items in order.items()}
