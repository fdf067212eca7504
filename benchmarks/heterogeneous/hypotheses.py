"""The bars H0-H5 of ALGORITHMS 4.1: one function a record, made from cells."""

from __future__ import annotations

from collections.abc import Mapping

from cells import Cells
from paired import Figure, inversions, mean_of
from protocol import CONTROL, DEFAULT, LOSSES, PAIR, WITHOUT_OWN
from records import Recorder, best_by_validation

from samespace.sdk.evidence import EvidenceRecord

__all__ = [
    "WINNER",
    "Winners",
    "h0",
    "h1",
    "h1_cotrained",
    "h1_unsearched",
    "h2",
    "h3",
    "h3_neighbours",
    "h4",
    "h4_search",
    "h4_spread",
    "h5",
    "recommended",
]

#: Reward -> multiply-accumulates of the architecture that it chose.
Winners = Mapping[str, int]
#: The reward whose choice H1 is about; named beforehand.
WINNER = "r3"
_CSD = "head-regression-csd"


def _all(cells: Cells, *losses: str) -> list[str]:
    """Architectures that were trained with all these losses.

    Raises:
        KeyError: none was.
    """
    found = [name for name in cells.architectures(losses[0]) if all(cells.has(name, loss) for loss in losses)]
    if not found:
        raise KeyError(f"no architecture with {losses}")
    return found


def h0(cells: Cells, record: Recorder) -> EvidenceRecord:
    names = _all(cells, CONTROL)
    best = cells.best()
    gaps = {name: best - cells.figure(name, CONTROL, "own") for name in names}
    least = min(gaps, key=lambda name: gaps[name].value)
    figures = {"smallest gap": gaps[least], "of": least, "mean gap": mean_of(list(gaps.values())), "M(g,g)": best}
    return record(
        "H0",
        "the cloud model is better than every edge network trained alone: without that there is nothing to gain",
        "M(g,g) - M(q,q) of the control >= 10 points of R@1 for every architecture",
        figures,
        gaps[least].value >= 0.10,
        f"the gap to {least} is {gaps[least].estimate.text()} points",
    )


def h1(cells: Cells, winners: Winners, record: Recorder) -> EvidenceRecord:
    if WINNER not in winners:
        raise KeyError(WINNER)
    cross, own, alone = (cells.other("search", WINNER, side) for side in ("cross", "own", "alone"))
    gain = cross - alone
    return record(
        "H1",
        f"the searched network ({WINNER.upper()}) finds more in the cloud's gallery than its control does in its own",
        "M(q,g) - M(q,q) of the control: paired interval above 0 (stretch: above its co-trained self)",
        {"gain": gain, "gain over its co-trained self": cross - own, "M(q,g)": cross, "M(q,q) of the control": alone},
        gain.estimate.low > 0,
        f"the gain is {gain.estimate.text()} points",
    )


def h1_unsearched(cells: Cells, record: Recorder) -> EvidenceRecord:
    names = _all(cells, CONTROL, DEFAULT)
    gains = {name: cells.figure(name, DEFAULT, "cross") - cells.figure(name, CONTROL, "own") for name in names}
    mean = mean_of(list(gains.values()))
    above = [name for name in names if gains[name].estimate.low > 0]
    below = [name for name in names if gains[name].estimate.high < 0]
    return record(
        "H1-unsearched",
        f"the same without a search, mean over {len(names)} architectures, loss {DEFAULT}",
        "mean of M(q,g) - M(q,q) of the control: paired interval above 0",
        {"mean gain": mean, "interval above 0 for": ", ".join(above) or "none", "below 0 for": ", ".join(below) or "none"},
        mean.estimate.low > 0,
        f"the mean gain is {mean.estimate.text()} points",
    )


def h1_cotrained(cells: Cells, record: Recorder) -> EvidenceRecord:
    names = _all(cells, DEFAULT)
    gains = {name: cells.figure(name, DEFAULT, "cross") - cells.figure(name, DEFAULT, "own") for name in names}
    mean = mean_of(list(gains.values()))
    return record(
        "H1-cotrained",
        "stretch: the cloud's gallery is better for an edge network than a gallery of its own, co-training included",
        "mean of M(q,g) - M(q,q) of the co-trained network: paired interval above 0",
        {"mean gain": mean, **gains},
        mean.estimate.low > 0,
        f"the mean gain is {mean.estimate.text()} points: co-training lifts M(q,q), too",
    )


def h2(cells: Cells, record: Recorder) -> EvidenceRecord:
    names = [
        name for name in PAIR if cells.has(name, "relational") and cells.has(name, "regression") and cells.has(name, CONTROL)
    ]
    if not names:
        raise KeyError("relational")
    cross = mean_of([cells.figure(name, "relational", "cross") for name in names])
    regression = mean_of([cells.figure(name, "regression", "cross") for name in names])
    chance = mean_of([cells.figure(name, CONTROL, "cross") for name in names])
    own = mean_of([cells.figure(name, "relational", "own") - cells.figure(name, CONTROL, "own") for name in names])
    bar = 0.1 * regression.value
    return record(
        "H2",
        "matching similarities within a space alone (RKD) does not bring two spaces together, however good the network stays",
        "M(q,g) <= 10 % of regression's, and M(q,q) within 3 points of the control's",
        {"M(q,g)": cross, "of the control": chance, "of regression": regression, "M(q,q) over the control's": own},
        cross.value <= bar and abs(own.value) <= 0.03,
        f"M(q,g) is {cross.estimate.text()} (bar {100 * bar:.1f}), M(q,q) {own.estimate.text()} points off the control's",
    )


def _gains(cells: Cells, better: str, worse: str) -> dict[str, Figure]:
    names = _all(cells, worse, better)
    return {name: cells.figure(name, better, "cross") - cells.figure(name, worse, "cross") for name in names}


def h3(cells: Cells, record: Recorder) -> EvidenceRecord:
    gains = _gains(cells, DEFAULT, "head")
    mean = mean_of(list(gains.values()))
    return record(
        "H3",
        "regression beside the frozen head beats the frozen head alone",
        "M(q,g) of head + regression - head: mean over the architectures >= 2 points",
        {"mean gain": mean, **gains},
        mean.value >= 0.02,
        f"the mean gain is {mean.estimate.text()} points",
    )


def h3_neighbours(cells: Cells, record: Recorder) -> EvidenceRecord:
    gains = _gains(cells, _CSD, DEFAULT)
    mean = mean_of(list(gains.values()))
    return record(
        "H3-neighbours",
        "adding a cross-space neighbour term (CSD) does not lose",
        "mean of M(q,g) with CSD - without: lower end of the interval >= -0.5 points",
        {"mean gain": mean, **gains},
        mean.estimate.low >= -0.005,
        f"the mean gain is {mean.estimate.text()} points",
    )


def _candidates(cells: Cells, split: str) -> dict[str, tuple[Figure, Figure]]:
    return {
        name: (cells.figure(name, DEFAULT, "own", split), cells.figure(name, DEFAULT, "cross", split))
        for name in _all(cells, DEFAULT)
    }


def h4(cells: Cells, record: Recorder) -> EvidenceRecord:
    validation, test = _candidates(cells, "validation"), _candidates(cells, "test")
    pairs = inversions(validation, test)
    confirmed = [pair for pair in pairs if pair.confirmed]
    figures: dict[str, Figure | float | str] = {
        "confirmed pairs": float(len(confirmed)),
        "chosen on validation": float(len(pairs)),
    }
    for pair in pairs[:3]:
        text = f"M(q,q) {pair.own.text()}, M(q,g) {pair.cross.text()} the other way round, p {pair.p:.3g}"
        figures[f"{pair.first} against {pair.second}"] = text
    result = record(
        "H4",
        f"over {len(test)} networks of equal cost, the order by M(q,q) is not the order by M(q,g): choose by what is deployed",
        ">= 1 pair opposite with both paired intervals off 0; chosen on validation classes, Holm-corrected on test classes",
        figures,
        bool(confirmed) and len(test) >= 6,
        f"none of the {len(pairs)} pairs chosen on validation classes is confirmed on test classes"
        if not confirmed
        else f"only {len(test)} candidates",
    )
    return result.model_copy(update={"n": next(iter(test.values()))[0].n})


def h4_spread(cells: Cells, record: Recorder) -> EvidenceRecord:
    test = _candidates(cells, "test")
    best, worst = (choose(test, key=lambda name: test[name][1].value) for choose in (max, min))
    spread = test[best][1] - test[worst][1]
    return record(
        "H4-spread",
        "the architecture matters at equal cost and equal loss",
        "best M(q,g) - worst M(q,g) >= 3 points",
        {"spread": spread, "best": best, "worst": worst},
        spread.value >= 0.03,
        f"the spread is {spread.estimate.text()} points",
    )


def h4_search(cells: Cells, winners: Winners, record: Recorder) -> EvidenceRecord:
    first = cells.other("search", "r1")
    gains = {name: cells.other("search", name) - first for name in ("r2", "r3")}
    better = best_by_validation({name: cells.other("search", name, split="validation") for name in gains})
    return record(
        "H4-search",
        "a search by M(q,g) (R2, R3) finds a network at least as good in the cloud's gallery as a search by M(q,q) (R1)",
        "M(q,g) of the R2 or R3 winner, the better on validation classes, - the R1 winner's >= 0, same budget",
        {"gain": gains[better], "of": better, **{f"MACs of {name}, M": winners[name] / 1e6 for name in ("r1", better)}},
        gains[better].value >= 0,
        f"{better.upper()}'s choice is {gains[better].estimate.text()} points above R1's",
    )


def recommended(cells: Cells, record: Recorder) -> EvidenceRecord:
    """The objective that recipes take by default."""

    def mean(loss: str, side: str, split: str = "test") -> Figure:
        return mean_of([cells.figure(name, loss, side, split) for name in PAIR])

    best = best_by_validation({loss: mean(loss, "cross", "validation") for loss in (*LOSSES, *WITHOUT_OWN)})
    gain = mean(best, "cross") - mean(_CSD, "cross")
    retention = {f"H of {name}": 100 * (cells.figure(name, best, "cross").value / cells.best().value) for name in PAIR}
    return record(
        "recommended",
        f"the objective that is best on validation classes, mean over {' and '.join(PAIR)}, is better than the main ones",
        f"M(q,g) - that of {_CSD}: paired interval above 0",
        {
            "gain": gain,
            "of": best,
            "M(q,g) - M(q,q) of the control": mean(best, "cross") - mean(CONTROL, "own"),
            "M(q,g) - M(q,q) of the same network": mean(best, "cross") - mean(best, "own"),
            **retention,
        },
        gain.estimate.low > 0,
        f"the gain is {gain.estimate.text()} points",
    )


_H5 = (
    "H5",
    "an edge network of a twentieth of the cloud model's cost keeps most of its search quality",
    ">= 20 x fewer multiply-accumulates at H = M(q,g) / M(g,g) >= 0.80 on R@1 (stretch 0.90)",
)


def h5(cells: Cells, macs: Mapping[str, int], cloud_macs: int, winners: Winners, record: Recorder) -> EvidenceRecord:
    paragon = cells.best()
    validation = {name: cells.figure(name, DEFAULT, "cross", "validation") for name in cells.architectures(DEFAULT)}
    validation |= {f"search {name}": cells.other("search", name, split="validation") for name in winners}
    costs = {**macs, **{f"search {name}": cost for name, cost in winners.items()}}
    cheap = {name: figure for name, figure in validation.items() if cloud_macs >= 20 * costs[name]}
    if validation and not cheap:
        return _too_dear(cloud_macs / min(costs[name] for name in validation), record)
    best = best_by_validation(cheap)
    searched = best.startswith("search ")
    cross = cells.other("search", best.removeprefix("search ")) if searched else cells.figure(best, DEFAULT, "cross")
    retention = cross / paragon
    return record(
        *_H5,
        {"H": retention, "of": best, "times fewer MACs": cloud_macs / costs[best]},
        retention.value >= 0.80,
        f"H is {retention.estimate.text(1, 3)}" + ("" if searched else ", without a search"),
        scale=1,
    )


def _too_dear(ratio: float, record: Recorder) -> EvidenceRecord:
    return record(*_H5, {"times fewer MACs": ratio}, False, f"the cloud model of this size has only {ratio:.1f} times the MACs")
