"""What is trained: upgrades across a quality gap, a chain of four generations, and updates against negative flips.

A run is one recipe for ``samespace train``, in the order in which they build on each other. Everything was fixed before any
test class was looked at; what is chosen among several is chosen on validation classes, or on a half of the held-out pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from samespace.cloud.data.config import Size

__all__ = [
    "CHAINS",
    "COMBINED",
    "FLIP_WEIGHTS",
    "GROWING",
    "METHODS",
    "NAMED",
    "OLD",
    "RETRIEVAL_WEIGHTS",
    "SIZES",
    "Run",
    "Scale",
    "runs",
]

DIM, PIXELS = 64, 32

_CE: dict[str, Any] = {"cosine_softmax": {}}
_BCT: dict[str, Any] = {**_CE, "partner_head": {}}
COMBINED: dict[str, Any] = {**_BCT, "regression": {"weight": 5.0}, "ract": {}}

#: Objectives of a successor. Weights are the published ones, or bring a term to about the softmax's size; none was tuned.
METHODS: dict[str, dict[str, Any]] = {
    "bct": _BCT,
    "ract": {**_CE, "ract": {}},
    "lce": {**_CE, "lce": {}},
    "l2": {**_CE, "regression": {"weight": 5.0}},
    "hoc": {**_CE, "hoc": {}},
    "combined": COMBINED,
}
#: BCT with 32 dimensions of its own beside the old ones.
WIDER = "bct-wider"
#: The method that A2 is about, named beforehand.
NAMED = "bct"
#: The model that every A run begins from.
OLD = "generation-1"
#: Methods that a chain of four generations is trained by.
CHAINS = ("bct", "combined")
#: Weights of focal distillation (logit matching) among which the held-out development pictures choose.
FLIP_WEIGHTS = (0.1, 0.5, 1.0, 5.0)
#: The same for retrieval, among which validation classes choose.
RETRIEVAL_WEIGHTS = (0.1, 1.0)
#: Runs of a class-growing update: without and with focal distillation, and bias-corrected (MPT).
GROWING: dict[str, dict[str, Any]] = {
    "growing-bct": _BCT,
    "growing-fd": {**_BCT, "focal_distillation": {"distance": "logits", "head": "own"}},
    "growing-mpt": {
        **_BCT,
        "focal_distillation": {"distance": "logits", "head": "own", "classes": "known"},
        "margin_preserving": {},
        "logit_difference": {},
    },
}
#: Independently trained on the same data as the growing updates: the second source of the bias-corrected one.
FREE = "flips-new-0"
MEMBERS = 3


@dataclass(frozen=True)
class Scale:
    """How much of the protocol a size is.

    Attributes:
        steps: of the four generations.
        widths: of their networks.
        flip_steps: of the models that flips are counted of.
        flip_width: of their networks; the wider one has twice as much.
        batch: pictures a step.
        seeds: of the paired repetitions.
        data: size of the emoji set.
    """

    steps: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    flip_steps: int
    flip_width: int
    batch: int
    seeds: tuple[int, ...]
    data: Size


SIZES: dict[str, Scale] = {
    "full": Scale((200, 400, 700, 1000), (8, 12, 17, 24), 2000, 10, 96, (0, 1, 2), "full"),
    "small": Scale((100, 200, 300, 400), (8, 12, 17, 24), 400, 10, 96, (0,), "small"),
    "ci": Scale((3, 3, 3, 3), (8, 8, 8, 8), 3, 8, 16, (0, 1), "ci"),
}


@dataclass(frozen=True)
class Run:
    """One call of ``samespace train``.

    Attributes:
        name: of its folder.
        recipe: content of the recipe.
        upgrades: name of the run that it begins from.
    """

    name: str
    recipe: dict[str, Any]
    upgrades: str | None = None


def runs(size: str, seed: int) -> list[Run]:
    """All runs of a repetition, each behind those that it builds on."""
    scale = SIZES[size]
    return [*_gap(scale, seed), *_chain(scale, seed), *_flips(scale, seed), *_growing(scale, seed)]


def _gap(scale: Scale, seed: int) -> list[Run]:
    """One upgrade from the weak first model to the strong last one, by every method, and without any."""
    width, steps = scale.widths[-1], scale.steps[-1]
    first = Run(OLD, _recipe(OLD, scale, seed, 25, scale.steps[0], {"cloud": _cloud(scale.widths[0])}))
    found = [first]
    for name, losses in METHODS.items():
        models = {"cloud": _cloud(width, losses)}
        if name == NAMED:
            models["control"] = _edge(width, _CE, compatible=False, start_as="cloud")
        found.append(Run(name, _recipe(name, scale, seed, 100, steps, models), OLD))
    wider = {"cloud": _cloud(width, _BCT, dim=DIM + DIM // 2)}
    return [*found, Run(WIDER, _recipe(WIDER, scale, seed, 100, steps, wider), OLD)]


def _chain(scale: Scale, seed: int) -> list[Run]:
    """Each generation upgrades the one before it: more classes, a wider network, longer training."""
    found = []
    for method in CHAINS:
        before = OLD
        for place, share in enumerate((50, 75, 100), 1):
            name = f"chain-{method}-{place + 1}"
            models = {"cloud": _cloud(scale.widths[place], METHODS[method])}
            found.append(Run(name, _recipe(name, scale, seed, share, scale.steps[place], models), before))
            before = name
    return found


def _flips(scale: Scale, seed: int) -> list[Run]:
    """An update of the same classes: members of two ensembles, students of both, and every treatment of one update."""

    def plain(name: str, extra: dict[str, Any] | None = None, offset: int = 0, losses: dict[str, Any] | None = None) -> Run:
        model = _cloud(scale.flip_width, losses)
        recipe = _recipe(name, scale, 10 * seed + offset, 100, scale.flip_steps, {"cloud": model})
        return Run(name, recipe | (extra or {}))

    old = [plain(f"flips-old-{member}", offset=1 + member) for member in range(MEMBERS)]
    new = [plain(f"flips-new-{member}", offset=1 + MEMBERS + member) for member in range(MEMBERS)]
    lesson = {**_CE, "logit_difference": {"weight": 4.0, "slack": 0.2}}
    students = [
        plain(f"flips-elodi-{side}", {"teachers": [f"../runs/{run.name}" for run in members]}, offset, lesson)
        for side, members, offset in (("old", old, 1), ("new", new, 1 + MEMBERS))
    ]
    width = scale.flip_width
    treated = {f"fd-lm-{weight}": _focal(weight) for weight in FLIP_WEIGHTS}
    treated |= {
        "naive": {**_CE, "naive_reweighting": {}},
        "kd-lm-1.0": _focal(1.0, beta=0.0),
        "fd-kl-1.0": _focal(1.0, distance="kl"),
    }
    models = {"cloud": {"role": "cloud", "run": "../runs/flips-old-0"}, "none": _edge(width, _CE, compatible=False)}
    for name, losses in treated.items():
        models[name.replace(".", "_")] = _edge(width, losses, compatible=False, start_as="none")
    models["wide-none"] = _edge(2 * width, _CE, compatible=False)
    for weight in FLIP_WEIGHTS:
        name = f"wide-fd-lm-{weight}".replace(".", "_")
        models[name] = _edge(2 * width, _focal(weight), compatible=False, start_as="wide-none")
    # For retrieval a model must be compatible to begin with.
    models["bct"] = _edge(width, _BCT, start_as="none")
    for weight in RETRIEVAL_WEIGHTS:
        name = f"bct-fd-{weight}".replace(".", "_")
        models[name] = _edge(width, {**_BCT, **_focal(weight, head="partner")}, start_as="none")
    name = "flips-update"
    update = Run(name, _recipe(name, scale, 10 * seed + 1 + MEMBERS, 100, scale.flip_steps, models))
    return [*old, *new, *students, update]


def _growing(scale: Scale, seed: int) -> list[Run]:
    """The old model knows half of the classes."""
    name, width, steps = "growing-old", scale.flip_width, scale.flip_steps
    found = [Run(name, _recipe(name, scale, 10 * seed + 1, 50, steps, {"cloud": _cloud(width)}))]
    for run, losses in GROWING.items():
        recipe = _recipe(run, scale, 10 * seed + 1 + MEMBERS, 100, steps, {"cloud": _cloud(width, losses)})
        teachers = {"teachers": [f"../runs/{FREE}"]} if "logit_difference" in losses else {}
        found.append(Run(run, recipe | teachers, name))
    return found


def _focal(weight: float, beta: float = 5.0, distance: str = "logits", head: str = "own") -> dict[str, Any]:
    return {**_CE, "focal_distillation": {"weight": weight, "beta": beta, "distance": distance, "head": head}}


def _recipe(name: str, scale: Scale, seed: int, share: int, steps: int, models: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "mode": "sequential",
        "seed": seed,
        "steps": steps,
        "batch": scale.batch,
        "device": "cpu",
        "data": {"kind": "manifest", "path": f"../../data/classes-{share}.csv", "source_size": 40},
        "models": models,
    }


def _cloud(width: int, losses: dict[str, Any] | None = None, dim: int = DIM) -> dict[str, Any]:
    return {"role": "cloud", **_network(width, dim), **({"losses": losses} if losses else {})}


def _edge(width: int, losses: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "edge", **_network(width, DIM), "losses": losses, **more}


def _network(width: int, dim: int) -> dict[str, Any]:
    arguments = {"depth": 1, "stages": 2, "stem_stride": 2, "pooling": "map", "width": width}
    return {"family": "residual", "dim": dim, "preprocess": {"size": PIXELS}, "arguments": arguments}
