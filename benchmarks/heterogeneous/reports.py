"""Records beside the hypotheses: prefixes, dimensions, families, peers and speed; one function a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cells import Cells
from paired import Figure, mean_of
from protocol import CONTROL, DEFAULT, FAMILIES, LOSSES, OTHERS, PAIR, PREFIXES, WIDTHS, WITHOUT_OWN
from records import Recorder, best_by_validation

from samespace.sdk.evidence import EvidenceRecord

__all__ = ["family", "m1", "peers", "slimmable", "stationary", "throughput", "unequal"]


def m1(cells: Cells, record: Recorder) -> EvidenceRecord:
    side = f"cross@{PREFIXES[0]}"

    def lost(scope: str) -> Figure:
        names = [name for name in PAIR if cells.has(name, scope, side, scope)]
        if not names:
            raise KeyError(scope)
        return mean_of(
            [cells.figure(n, scope, "cross", scope=scope) - cells.figure(n, scope, side, scope=scope) for n in names]
        )

    trained, untrained = lost("prefixes-with"), lost("prefixes-without")
    price = mean_of(
        [
            cells.figure(name, "prefixes-without", "cross", scope="prefixes-without")
            - cells.figure(name, "prefixes-with", "cross", scope="prefixes-with")
            for name in PAIR
        ]
    )
    more = untrained - trained
    return record(
        "M1",
        f"an eighth of the coordinates ({PREFIXES[0]} of {PREFIXES[-1] * 2}) is enough, for models trained with prefixes",
        "R@1 lost <= 3 points with prefixes, >= 3 points more without",
        {"lost with": trained, "lost without": untrained, "lost more without": more, "price at full width": price},
        trained.value <= 0.03 and more.value >= 0.03,
        f"{trained.estimate.text()} points are lost with prefixes, {more.estimate.text()} more without",
    )


def unequal(cells: Cells, record: Recorder) -> EvidenceRecord:
    half, full = (cells.figure(name, DEFAULT, "cross") for name in ("residual-64d", "residual"))
    return record(
        "unequal-dimensions",
        "an edge model of 64 dimensions searches the gallery of 128 by its first 64 coordinates, though it was trained whole",
        "reported",
        {"M(q,g) of 64 dimensions": half, "below that of 128": full - half},
        True,
        "",
    )


def stationary(cells: Cells, record: Recorder) -> EvidenceRecord:
    def mean(scope: str) -> Figure:
        return mean_of([cells.figure(name, scope, "cross", scope=scope) for name in PAIR])

    with_partner, without = mean("prefixes-without"), mean("simplex")
    return record(
        "stationary-head",
        "a fixed simplex as everyone's classifier gives one space without any partner network",
        "reported, beside head + regression with the same small cloud model",
        {"M(q,g) of simplex": without, "of head + regression": with_partner, "M(g,g) of simplex": cells.best(scope="simplex")},
        True,
        "",
    )


def family(cells: Cells, record: Recorder) -> EvidenceRecord:
    figures: dict[str, Figure | float | str] = {}
    base = None
    for scope in ("prefixes-without", *FAMILIES):
        if not all(cells.has(name, scope, scope=scope) for name in PAIR):
            continue
        cross = mean_of([cells.figure(name, scope, "cross", scope=scope) for name in PAIR])
        if base is None:
            base, figures["sequential, mean M(q,g)"] = cross, cross
        else:
            figures[f"{scope}, over it"] = cross - base
            figures[f"{scope}, M(g,g)"] = cells.best(scope=scope)
    if len(figures) < 2:
        raise KeyError("family")
    return record(
        "co-training",
        "one cloud and two edge models in one loop, against the cloud first and then the edges, at as many steps each",
        "reported",
        figures,
        True,
        "",
    )


def slimmable(cells: Cells, record: Recorder) -> EvidenceRecord:
    figures: dict[str, Figure | float | str] = {}
    for width in map(str, WIDTHS):
        shared, apart = (cells.figure(width, loss, "cross", scope="slimmable") for loss in ("shared", "apart"))
        figures |= {f"width {width}, shared - apart": shared - apart, f"width {width}, M(q,g) shared": shared}
    return record(
        "slimmable",
        "one network whose widths are all deployable and compatible, against a network for each width, at as many steps",
        "reported",
        figures,
        True,
        "",
    )


def peers(cells: Cells, record: Recorder) -> EvidenceRecord:
    name = "residual"
    losses = [loss for loss in (*LOSSES, *OTHERS, *WITHOUT_OWN) if loss != CONTROL and cells.has(name, loss)]
    ours = best_by_validation({loss: cells.figure(name, loss, "cross", "validation") for loss in losses})
    theirs = best_by_validation({peer: cells.other("peers", peer, split="validation") for peer in cells.others("peers")})
    gain = cells.figure(name, ours, "cross") - cells.other("peers", theirs)
    return record(
        "peers",
        "our best loss against the best of pytorch-metric-learning with ref_emb (ContrastiveLoss, NTXentLoss, SupConLoss, "
        "MultiSimilarityLoss, each alone and beside a classifier): same data, network, start and steps; both chosen on "
        "validation classes",
        "M(q,g) of ours - theirs >= 0",
        {"gain": gain, "ours": ours, "theirs": theirs, "M(q,g) of theirs": cells.other("peers", theirs)},
        gain.value >= 0,
        f"ours is {gain.estimate.text()} points above theirs",
    )


def throughput(speed: Mapping[str, Any] | None, record: Recorder) -> EvidenceRecord:
    if speed is None:
        raise KeyError("throughput")
    figures = {
        "ratio": float(speed["ratio"]),
        "images/s of ours": speed["ours_images_s"],
        "of the plain loop": speed["plain_images_s"],
    }
    result = record(
        "throughput",
        "training as fast as a plain PyTorch loop with the same models and forward passes, one thread, in turns",
        "ratio of the median images/s >= 0.97",
        figures,
        speed["ratio"] >= 0.97,
        f"the ratio is {speed['ratio']:.3f}",
    )
    return result.model_copy(update={"ci95": (speed["low"], speed["high"]), "n": speed["rounds"]})
