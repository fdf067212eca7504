"""Fitting an adapter between the models of two finished runs, and judging what it does to queries."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from samespace.cloud.adapters import pairs
from samespace.cloud.adapters.linear import fit_low_rank, fit_ridge
from samespace.cloud.adapters.network import NetworkSettings, fit_network
from samespace.cloud.adapters.pair import PairSettings, fit_pair
from samespace.cloud.adapters.procrustes import fit_rotation
from samespace.cloud.upgrades.measure import Compare, Generation, Pictures, measure_chain
from samespace.cloud.upgrades.report import UpgradeReport
from samespace.sdk.adapter import Adapter, AdapterRecord
from samespace.sdk.errors import ConfigError
from samespace.sdk.prefix import comparable

__all__ = ["METHODS", "Direction", "Material", "Method", "fit", "material_of", "measured"]

Rows = npt.NDArray[np.float32]
Method = Literal["procrustes", "ridge", "low-rank", "network", "pair"]
#: backward: queries of the new model, for the gallery as it is. forward: the gallery, for queries as they are.
Direction = Literal["backward", "forward"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, eq=False)
class Material:
    """What both models make of the same pictures.

    Attributes:
        old, new: of test classes, which no adapter is fitted to.
        old_rows, new_rows: ``(n, d)`` and ``(n, d')`` of training pictures; ``labels`` their classes, rows of the heads.
        heads: class weights of the old and the new model, ``(classes, d)``; empty where the runs learnt other classes.
        side: side information by name of the part (fit, query, gallery), where there is some.
    """

    old: Generation
    new: Generation
    pictures: Pictures
    old_rows: Rows
    new_rows: Rows
    labels: npt.NDArray[np.int64]
    heads: dict[str, Rows] = field(default_factory=dict)
    side: dict[str, Rows] = field(default_factory=dict)


def material_of(old: Path, new: Path, side: Path | None = None) -> Material:
    """Embed the new run's data by the newest cloud model of either run.

    Args:
        side: a run whose cloud model gives side information on each picture (FCT's psi).

    Raises:
        ConfigError: a run that is not complete. IntegrityError: weights that are not those of their record.
    """
    from samespace.cloud.evaluation import embed
    from samespace.cloud.recipe import load_recipe
    from samespace.cloud.training.data import load_training_data
    from samespace.cloud.training.items import described
    from samespace.cloud.training.partners import read_head
    from samespace.export.run import read_run

    recipe = load_recipe(new / "recipe.toml", "full")
    data = load_training_data(recipe)
    place = {index: row for row, index in enumerate(data.split.train)}
    chosen = data.shuffled(data.split.train)[: pairs.MOST]
    parts = {"fit": chosen, "query": data.split.test_query, "gallery": data.split.test_gallery}
    if not parts["query"]:
        raise ConfigError(f"{new}: its data has no test pictures to judge an adapter by; keep some classes out of training")
    rows: dict[str, dict[str, Rows]] = {}
    ids, heads = {}, {}
    for name, folder in {"old": old, "new": new, **({"side": side} if side else {})}.items():
        model = read_run(folder).newest
        network, preprocess = model.build(), model.record.preprocess
        rows[name] = {part: embed(network, data.prepared(indices, preprocess), preprocess) for part, indices in parts.items()}
        ids[name] = model.record.model_id
        if name != "side":
            head, classes = read_head(folder, model.name)
            if classes == data.classes:
                heads[name] = head.numpy()
    items = described(data, recipe.models[recipe.cloud].preprocess)["test"]
    before, after = (Generation(name, ids[name], rows[name]["query"], rows[name]["gallery"]) for name in ("old", "new"))
    return Material(
        before,
        after,
        Pictures(items["query"], items["gallery"]["class"]),
        rows["old"]["fit"],
        rows["new"]["fit"],
        data.labels[[place[index] for index in chosen]],
        heads,
        rows.get("side", {}),
    )


def fit(
    material: Material, method: Method, direction: Direction = "backward", settings: dict[str, Any] | None = None
) -> dict[Direction, Adapter]:
    """Fit by a method; ``pair`` gives both directions, others the one that is asked for.

    Args:
        settings: of the method: ``penalty`` (ridge, low-rank), ``rank`` (low-rank), those of :class:`NetworkSettings` or
            :class:`PairSettings`.

    Raises:
        ConfigError: settings that the method does not have. DataError: too few pictures.
    """
    settings = settings or {}
    _known(method, settings)
    if method == "pair":
        pair = fit_pair(material.old_rows, material.new_rows, material.labels, PairSettings(**settings))
        both: dict[Direction, Any] = {"backward": pair.backward, "forward": pair.forward}
        # Both end in the old dimension, near the old space: forward embeddings are compared with backward ones.
        records = {
            "backward": _record(material, "backward", "new", "old", settings),
            "forward": _record(material, "forward", "old", "old", settings),
        }
        return {name: Adapter(records[name], tensors) for name, tensors in both.items()}
    rows = {"old": material.old_rows, "new": material.new_rows}
    source, target = ("new", "old") if direction == "backward" else ("old", "new")
    record = _record(material, method, source, target, settings)
    tensors: dict[str, npt.NDArray[Any]]
    if method == "procrustes":
        tensors = {"linear.weight": fit_rotation(rows[source], rows[target])}
    elif method == "network":
        side = material.side.get("fit")
        options = NetworkSettings(**settings)
        tensors = dict(
            fit_network(rows[source], rows[target], options, side=side, labels=material.labels, head=material.heads.get(target))
        )
        record = record.model_copy(update={"side_dim": 0 if side is None else side.shape[1]})
    else:
        half = max(1, min(rows[source].shape[1], rows[target].shape[1]) // 2)
        weight, bias = (
            fit_ridge(rows[source], rows[target], **settings)
            if method == "ridge"
            else fit_low_rank(rows[source], rows[target], **{"rank": half, **settings})
        )
        tensors = {"linear.weight": weight, "linear.bias": bias}
    return {direction: Adapter(record, {name: tensor.astype(np.float32) for name, tensor in tensors.items()})}


def measured(material: Material, adapters: dict[Direction, Adapter], reproduce: str = "") -> UpgradeReport:
    """The upgrade with these adapters between the models: M(o,o), new queries in the old gallery, and so on."""
    return measure_chain(
        [material.old, material.new], material.pictures, reproduce=reproduce, compare=_through(material, adapters)
    )


def _through(material: Material, adapters: dict[Direction, Adapter]) -> Compare:
    back, forth = adapters.get("backward"), adapters.get("forward")

    def compare(query: Generation, gallery: Generation) -> tuple[Rows, Rows]:
        if query is gallery:
            return query.query, gallery.gallery
        old_side = "query" if query is material.old else "gallery"
        rows = {"query": query.query, "gallery": gallery.gallery}
        new_side = "gallery" if old_side == "query" else "query"
        if back is not None:
            rows[new_side] = back.apply(rows[new_side], material.side.get(new_side) if back.record.side_dim else None)
        elif forth is not None:
            rows[old_side] = forth.apply(rows[old_side], material.side.get(old_side) if forth.record.side_dim else None)
        return comparable(rows["query"], rows["gallery"])

    return compare


def _record(material: Material, method: str, source: str, target: str, settings: dict[str, Any]) -> AdapterRecord:
    ids = {"old": material.old.model_id, "new": material.new.model_id}
    return AdapterRecord(
        method=method,
        source_model_id=ids[source],
        target_model_id=ids[target],
        pairs=len(material.labels),
        settings=settings,
    )


def _known(method: Method, settings: dict[str, Any]) -> None:
    known: dict[Method, set[str]] = {
        "procrustes": set(),
        "ridge": {"penalty"},
        "low-rank": {"penalty", "rank"},
        "network": {one.name for one in fields(NetworkSettings)},
        "pair": {one.name for one in fields(PairSettings)},
    }
    if unknown := sorted(set(settings) - known[method]):
        names = ", ".join(sorted(known[method])) or "none"
        raise ConfigError(f"{method} has no setting {unknown[0]!r}; it has: {names}")
