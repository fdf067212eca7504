"""What is trained: architectures of equal cost, objectives, and the recipes that the product's own trainer runs.

A job is one recipe (or one command) that a single thread works on. A model is named after its architecture and its objective;
the first objective of an architecture bears the architecture's name alone, and all others say ``start_as`` that name. Initial
weights depend on seed and name only, so all models of one architecture and seed start alike, in whatever job they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ARCHITECTURES",
    "CLOUD",
    "CONTROL",
    "DEFAULT",
    "FAMILIES",
    "LOSSES",
    "OTHERS",
    "PREFIXES",
    "SIZES",
    "WIDTHS",
    "WITHOUT_OWN",
    "Cell",
    "Job",
    "Scale",
    "jobs",
    "parts",
]

DIM, PIXELS = 128, 32

_RESIDUAL = {"depth": 1, "stages": 2, "stem_stride": 2, "pooling": "map"}

#: Name -> family, arguments, and core-seconds of 800 steps of 96. All within 10 % of 2.4 M multiply-accumulates, at least 25
#: times fewer than the cloud model's 66 M, and each unlike ``residual`` or its neighbour in one property.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], float]] = {
    "residual": ("residual", {**_RESIDUAL, "width": 17}, 31),
    "plain": ("residual", {**_RESIDUAL, "width": 17, "shortcut": False}, 29),
    "inverted5": ("inverted_residual", {**_RESIDUAL, "width": 25, "kernel": 5}, 64),
    "mean-head": ("residual", {**_RESIDUAL, "width": 18, "pooling": "mean"}, 28),
    "stride4": ("residual", {**_RESIDUAL, "width": 35, "stem_stride": 4}, 24),
    "inverted3": ("inverted_residual", {**_RESIDUAL, "width": 26, "kernel": 3}, 45),
    "mixer": ("mixer", {"width": 47, "depth": 2, "patch": 4, "pooling": "map"}, 44),
    "inverted3-mean": ("inverted_residual", {**_RESIDUAL, "width": 33, "kernel": 3, "pooling": "mean"}, 45),
}
#: Two jobs a seed, of about equal work.
_GROUPS = (("residual", "plain", "inverted5"), ("mean-head", "stride4", "inverted3", "mixer"))
#: A further candidate for the order of networks, with control and default objective only: a stronger trunk under a head unlike
#: the cloud model's.
_CANDIDATES = ("inverted3-mean",)
#: The architectures that every other loss is tried on.
PAIR = ("residual", "inverted3")

CLOUD: dict[str, Any] = {"family": "wide_residual", "arguments": {"width": 96, "stages": 2}}

_CE = {"cosine_softmax": {"weight": 1.0}}
_HEAD = {"partner_head": {"weight": 1.0}}
_REGRESSION = {"regression": {"weight": 5.0}}

#: The objective of every comparison that does not say another, and the control.
DEFAULT, CONTROL = "head-regression", "vanilla"

#: The main losses; the first gives the models their names. Weights were fixed beforehand (ALGORITHMS 4.2), none was tuned here.
LOSSES: dict[str, dict[str, Any]] = {
    CONTROL: _CE,
    "head": {**_CE, **_HEAD},
    "regression": {**_CE, **_REGRESSION},
    DEFAULT: {**_CE, **_HEAD, **_REGRESSION},
    "head-regression-csd": {**_CE, **_HEAD, **_REGRESSION, "csd": {"weight": 2.0}},
}
#: Every other loss: beside the model's own softmax where it can stand alone, beside all of ``DEFAULT`` where it is an aid. None
#: was tuned: a weight brings a term to about 5 at the start, where values are on a scale of their own.
OTHERS: dict[str, dict[str, Any]] = {
    "contrastive": {**_CE, "contrastive": {}},
    "csd": {**_CE, "csd": {"weight": 2.0}},
    "structure-similarity": {**_CE, "structure_similarity": {}},
    "rank-order": {**_CE, "rank_order": {"weight": 10.0}},
    "asymmetric-margin": {**_CE, "asymmetric_margin": {"weight": 5.0}},
    "rank-difference": {**_CE, "rank_difference": {}},
    "relational": {**_CE, "relational": {}},
    "stage-features": {**LOSSES[DEFAULT], "stage_features": {}},
}
#: Without a softmax of the model's own.
WITHOUT_OWN: dict[str, dict[str, Any]] = {
    "head-regression-alone": {**_HEAD, **_REGRESSION},
    "head-regression-csd-alone": {**_HEAD, **_REGRESSION, "csd": {"weight": 2.0}},
    "contrastive-alone": {"contrastive": {}},
    "contrastive-regression-alone": {"contrastive": {}, **_REGRESSION},
    "head-contrastive-regression-alone": {**_HEAD, "contrastive": {}, **_REGRESSION},
    "contrastive-regression-csd-alone": {"contrastive": {}, **_REGRESSION, "csd": {"weight": 2.0}},
    "asymmetric-margin-regression-alone": {"asymmetric_margin": {"weight": 5.0}, **_REGRESSION},
}
PREFIXES = (DIM // 8, DIM // 4, DIM // 2)
#: Settings of the table ``[joint]``; gradients can only conflict where something is shared.
_FAMILIES: dict[str, dict[str, Any]] = {
    "joint": {},
    "joint-uncertainty": {"weights": "uncertainty"},
    "joint-shared-head": {"shared_head": True},
    "joint-sfsc": {"weights": "uncertainty", "shared_head": True, "project_conflicts": True},
}
FAMILIES = tuple(_FAMILIES)
#: Widths of the slimmable family, the greatest first.
WIDTHS = (17, 12, 8)


@dataclass(frozen=True)
class Scale:
    """How much of the protocol a size is.

    Attributes:
        steps: of every edge model beside the cloud model.
        cloud_steps: of the cloud model.
        small_steps: of each stage where models found a space of their own: prefixes, the stationary head, families.
        batch: images a step.
        seeds: of the paired repetitions.
        data: the emoji set's size.
        architectures: which of them.
        cloud_width: of the cloud model.
        small_width: of the cloud models that prefixes, the stationary head and families are trained with.
    """

    steps: int
    cloud_steps: int
    small_steps: int
    batch: int
    seeds: tuple[int, ...]
    data: str
    architectures: tuple[str, ...]
    cloud_width: int
    small_width: int


_ALL = tuple(ARCHITECTURES)
SIZES = {
    "full": Scale(800, 2400, 400, 96, (0, 1, 2), "full", _ALL, 96, 40),
    "small": Scale(200, 400, 100, 96, (0,), "small", _ALL, 64, 24),
    "ci": Scale(3, 3, 3, 16, (0, 1), "ci", ("residual", "inverted3"), 16, 16),
}


@dataclass(frozen=True)
class Cell:
    """What a model of a job is.

    Attributes:
        scope: cells of one scope have the same cloud model: ``main`` the fixed one, all others one of each seed's own.
        architecture: key of :data:`ARCHITECTURES`, or another name.
        loss: key of :data:`LOSSES` or :data:`OTHERS`, or another name.
        seed: of the repetition.
    """

    scope: str
    architecture: str
    loss: str
    seed: int


@dataclass(frozen=True)
class Job:
    """One unit of work for one thread.

    Attributes:
        name: of its folder and its log.
        part: what ``--only`` names.
        seconds: of one core, estimated at full size; long jobs go first.
        recipe: content of the recipe, for ``samespace train``; None for another command.
        cells: model of the recipe -> what it is.
        script: file of this folder that is run instead, and its arguments.
        after: jobs that must be done before.
    """

    name: str
    part: str
    seconds: float
    recipe: dict[str, Any] | None = None
    cells: Mapping[str, Cell] = field(default_factory=dict)
    script: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def losses(self) -> set[str]:
        """Names of the losses that it needs."""
        models = (self.recipe or {}).get("models", {})
        return {loss for model in models.values() for loss in model.get("losses", {})}


def jobs(size: str, cloud_run: str | None = "../runs/cloud") -> list[Job]:
    """All jobs of a size.

    Args:
        size: key of :data:`SIZES`.
        cloud_run: the cloud model's run, as recipes name it; None has each recipe train the cloud model itself.
    """
    scale = SIZES[size]
    founder = {"role": "cloud", "run": cloud_run} if cloud_run else _cloud(scale.cloud_width)
    found = [
        Job("cloud", "cloud", 1300, _recipe("emoji-het", scale, 0, {"cloud": _cloud(scale.cloud_width)}, scale.cloud_steps))
    ]
    for seed in scale.seeds:
        for number, group in enumerate(_GROUPS):
            names = [name for name in group if name in scale.architectures]
            models = dict.fromkeys(names, LOSSES)
            found.append(_edges(f"main-{number}-seed{seed}", "main", scale, seed, founder, models))
        if all(name in scale.architectures for name in _CANDIDATES):
            few = {loss: LOSSES[loss] for loss in (CONTROL, DEFAULT)}
            found.append(_edges(f"candidates-seed{seed}", "main", scale, seed, founder, dict.fromkeys(_CANDIDATES, few)))
        found.append(_edges(f"others-seed{seed}", "others", scale, seed, founder, dict.fromkeys(PAIR, OTHERS), unequal=True))
        found.append(_edges(f"without-own-seed{seed}", "others", scale, seed, founder, dict.fromkeys(PAIR, WITHOUT_OWN)))
        found += _with_own_cloud(scale, seed)
        found.append(_slimmable(scale, seed, founded=cloud_run is not None))
        found.append(Job(f"peers-seed{seed}", "peers", 450, script=("peers.py", str(seed)), after=("cloud",)))
    found.append(Job("throughput", "throughput", 200, script=("throughput.py",)))
    found.append(Job("search", "search", 2500, script=("search.py",), after=("cloud",)))
    return found


def _edges(
    name: str,
    part: str,
    scale: Scale,
    seed: int,
    founder: dict[str, Any],
    wanted: Mapping[str, Mapping[str, dict[str, Any]]],
    unequal: bool = False,
) -> Job:
    """Edge models beside the fixed cloud model: architecture -> objectives."""
    models: dict[str, Any] = {"cloud": founder}
    cells, seconds = {}, 190.0
    for architecture, losses in wanted.items():
        for number, (loss, terms) in enumerate(losses.items()):
            model = architecture if not number else f"{architecture}-{loss}"
            models[model] = _edge(architecture, terms) | ({"start_as": architecture} if number else {})
            if loss == CONTROL:
                models[model]["compatible"] = False
            cells[model] = Cell("main", architecture, loss, seed)
            seconds += ARCHITECTURES[architecture][2]
    if unequal:
        models["residual-64d"] = _edge("residual", LOSSES[DEFAULT]) | {"dim": DIM // 2}
        cells["residual-64d"] = Cell("main", "residual-64d", DEFAULT, seed)
        seconds += ARCHITECTURES["residual"][2]
    return Job(name, part, seconds, _recipe(name, scale, seed, models), cells, after=("cloud",))


def _with_own_cloud(scale: Scale, seed: int) -> list[Job]:
    """What founds a space of its own: prefixes, the stationary head, families."""
    cloud = _cloud(scale.small_width)
    edges = {name: _edge(name, LOSSES[DEFAULT]) for name in PAIR}
    found = []

    def add(name: str, part: str, models: dict[str, Any], more: dict[str, Any], seconds: float) -> None:
        cells = {model: Cell(name, model, name, seed) for model in models}
        recipe = _recipe(f"{name}-seed{seed}", scale, seed, models, scale.small_steps) | more
        found.append(Job(f"{name}-seed{seed}", part, seconds, recipe, cells))

    # Both are measured at every prefix; one is trained for none. That one is the families' sequential baseline, too.
    untrained = {name: {**model, "prefixes": []} for name, model in {"cloud": cloud, **edges}.items()}
    add("prefixes-without", "prefixes", untrained, {"prefixes": list(PREFIXES)}, 120)
    add("prefixes-with", "prefixes", {"cloud": cloud, **edges}, {"prefixes": list(PREFIXES)}, 260)
    simplex = {"losses": {"simplex": {}}}
    stationary = {"cloud": {**cloud, **simplex}, **{name: {**model, **simplex} for name, model in edges.items()}}
    add("simplex", "others", stationary, {}, 120)
    for name, settings in _FAMILIES.items():
        more = {"mode": "joint"} | ({"joint": settings} if settings else {})
        add(name, "family", {"cloud": cloud, **edges}, more, 120)
    return found


def _slimmable(scale: Scale, seed: int, founded: bool) -> Job:
    """One network of three widths against three networks, beside the small cloud model that the prefixes' baseline founded."""
    before, name = f"prefixes-without-seed{seed}", f"slimmable-seed{seed}"
    cloud = {"role": "cloud", "run": f"../runs/{before}", "prefixes": []} if founded else _cloud(scale.small_width)
    models: dict[str, Any] = {"cloud": cloud}
    cells = {"cloud": Cell("slimmable", "cloud", "cloud", seed)}
    for width in WIDTHS:
        for loss in ("shared", "apart"):
            edge = _edge("residual", LOSSES[DEFAULT])
            edge["arguments"]["width"] = width
            if loss == "shared" and width != WIDTHS[0]:
                edge["shares"] = f"shared-{WIDTHS[0]}"
            models[f"{loss}-{width}"] = edge
            cells[f"{loss}-{width}"] = Cell("slimmable", str(width), loss, seed)
    joint = {"joint": {"weights": "uncertainty", "project_conflicts": True}}
    return Job(name, "family", 110, _recipe(name, scale, seed, models, scale.small_steps) | joint, cells, after=(before,))


def _recipe(name: str, scale: Scale, seed: int, models: dict[str, Any], steps: int | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "mode": "sequential",
        "seed": seed,
        "steps": steps or scale.steps,
        "batch": scale.batch,
        "device": "cpu",
        "data": {"kind": "emoji", "size": scale.data},
        "losses": LOSSES[DEFAULT],
        "models": models,
    }


def _cloud(width: int) -> dict[str, Any]:
    return _model("cloud", CLOUD["family"], {**CLOUD["arguments"], "width": width})


def _edge(architecture: str, losses: dict[str, Any]) -> dict[str, Any]:
    family, arguments, _ = ARCHITECTURES[architecture]
    return {**_model("edge", family, arguments), "losses": losses}


def _model(role: str, family: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": role, "family": family, "dim": DIM, "preprocess": {"size": PIXELS}, "arguments": dict(arguments)}


def parts(found: Sequence[Job]) -> list[str]:
    """Names of the parts, in order."""
    return list(dict.fromkeys(job.part for job in found))
