"""What an update breaks: negative flips in classification and in retrieval, by treatment; settings from development halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cells import Cells
from classification import Classified, Member
from paired import Figure, Resamples, mean_of
from protocol import FLIP_WEIGHTS, MEMBERS, RETRIEVAL_WEIGHTS

__all__ = ["Treated", "Update", "chosen", "classified", "ensembles", "growing", "retrieved"]

#: A setting may cost this much more error on the development half, as a share.
ALLOWED = 0.005
UPDATE, OLD_RUN = "flips-update", ("flips-old-0", "cloud")

Outcomes = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Treated:
    """An update with one treatment.

    Attributes:
        error: share of pictures or queries that the new model has wrong.
        flips: share that the old model has right, and the new one wrong.
    """

    error: Figure
    flips: Figure


@dataclass(frozen=True)
class Update:
    """Two updates of the same old model.

    Attributes:
        plain: trained as if there had been no old model, or (retrieval) for compatibility alone.
        treated: name -> with that treatment; of the test half.
        name: of the treatment that the development half chose.
    """

    plain: Treated
    treated: Mapping[str, Treated]
    name: str = ""

    @property
    def cut(self) -> Figure:
        """By which share the chosen treatment cuts the flips."""
        return self.cut_of(self.name)

    def cut_of(self, name: str) -> Figure:
        """By which share a treatment cuts the flips."""
        ratio = self.treated[name].flips / self.plain.flips
        return Figure(1 - ratio.value, 1 - ratio.draws, ratio.n)

    @property
    def cost(self) -> Figure:
        """Error of the chosen treatment above the plain update's."""
        return self.treated[self.name].error - self.plain.error


def chosen(plain: tuple[Outcomes, Outcomes], treated: Mapping[str, tuple[Outcomes, Outcomes]]) -> str:
    """The treatment of the fewest flips whose error is hardly higher; by (wrong, flipped) of the development half.

    Where none keeps its error low, the one of the lowest error.
    """
    most = plain[0].mean() + ALLOWED
    fit = {name: flipped.mean() for name, (wrong, flipped) in treated.items() if wrong.mean() <= most}
    return min(fit, key=lambda name: fit[name]) if fit else min(treated, key=lambda name: treated[name][0].mean())


def classified(found: Classified, prefix: str = "") -> Update:
    """The update of one old classifier, of the same width or (``wide-``) twice as wide."""
    old = found.correct(OLD_RUN)
    weighed = [f"{prefix}fd-lm-{weight}" for weight in FLIP_WEIGHTS]
    others = [] if prefix else ["naive", "kd-lm-1.0", "fd-kl-1.0"]
    new = {name: found.correct((UPDATE, name.replace(".", "_"))) for name in (f"{prefix}none", *weighed, *others)}
    dev, test = found.development, ~found.development
    pairs = {name: _pair(old, correct) for name, correct in new.items()}
    best = chosen(_half(pairs[f"{prefix}none"], dev), {name: _half(pairs[name], dev) for name in weighed})
    figures = _figures({name: _half(pair, test) for name, pair in pairs.items()})
    return Update(figures.pop(f"{prefix}none"), figures, best)


def retrieved(cells: Cells) -> Update:
    """The update of one old retrieval model, the gallery as it is; chosen on validation classes."""
    names = {f"fd {weight}": f"bct-fd-{weight}".replace(".", "_") for weight in RETRIEVAL_WEIGHTS}

    def pair(tier: str, split: str) -> tuple[Outcomes, Outcomes]:
        old = cells.found(UPDATE, "cloud", "cloud", split=split) > 0
        return _pair(old, cells.found(UPDATE, tier, "cloud", split=split) > 0)

    best = chosen(pair("bct", "validation"), {name: pair(tier, "validation") for name, tier in names.items()})
    figures = _figures({"bct": pair("bct", "test"), **{name: pair(tier, "test") for name, tier in names.items()}})
    return Update(figures.pop("bct"), figures, best)


def ensembles(found: Classified) -> Update:
    """A single model's update, an ensemble's, and a student's (ELODI); nothing is chosen, so all pictures count."""

    def members(side: str) -> list[Member]:
        return [(f"flips-{side}-{number}", "cloud") for number in range(MEMBERS)]

    single = [_pair(found.correct(a), found.correct(b)) for a, b in zip(members("old"), members("new"), strict=True)]
    ensemble = _pair(found.correct(*members("old")), found.correct(*members("new")))
    student = _pair(found.correct(("flips-elodi-old", "cloud")), found.correct(("flips-elodi-new", "cloud")))
    figures = _figures({**{str(number): pair for number, pair in enumerate(single)}, "ensemble": ensemble, "elodi": student})
    alone = [figures.pop(str(number)) for number in range(MEMBERS)]
    plain = Treated(mean_of([one.error for one in alone]), mean_of([one.flips for one in alone]))
    return Update(plain, figures, "ensemble")


def growing(found: Classified) -> Update:
    """An update that knows twice as many classes: flips of pictures of the classes that the old model knew."""
    known = ("growing-old", "cloud")
    old = found.correct(known, known=known)
    names = {"none": "growing-bct", "fd": "growing-fd", "mpt": "growing-mpt"}
    figures = _figures({name: _pair(old, found.correct((run, "cloud"), known=known)) for name, run in names.items()})
    return Update(figures.pop("none"), figures, "mpt")


def _pair(old: npt.NDArray[np.bool_], new: npt.NDArray[np.bool_]) -> tuple[Outcomes, Outcomes]:
    """Whether each is wrong, and whether it flipped; ``(seeds, n)`` both."""
    return (~new).astype(np.float64), (old & ~new).astype(np.float64)


def _half(pair: tuple[Outcomes, Outcomes], rows: npt.NDArray[np.bool_]) -> tuple[Outcomes, Outcomes]:
    return pair[0][:, rows], pair[1][:, rows]


def _figures(pairs: Mapping[str, Sequence[Outcomes]]) -> dict[str, Treated]:
    wrong = next(iter(pairs.values()))[0]
    resamples = Resamples(*wrong.shape)
    return {name: Treated(resamples.figure(errors), resamples.figure(flips)) for name, (errors, flips) in pairs.items()}
