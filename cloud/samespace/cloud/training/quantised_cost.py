"""What int8 costs models that learnt under fake quantisation: before that, and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from samespace.cloud.evaluation import embed, measure
from samespace.cloud.recipe import Recipe
from samespace.cloud.training.data import TrainingData
from samespace.cloud.training.quantised import calibrate, start_of
from samespace.edge.models.fake_quant import FakeQuantised
from samespace.sdk.metrics import cosine, worst_percentile
from samespace.sdk.prefix import comparable

__all__ = ["Encode", "quantised_costs"]

#: Embeddings of pictures of the set by the model of that name.
Encode = Callable[[str, Sequence[int]], npt.NDArray[np.float32]]


def quantised_costs(
    recipe: Recipe, data: TrainingData, models: Mapping[str, nn.Module], encode: Encode
) -> dict[str, dict[str, Any]]:
    """What is kept in ``quantisation.json``; empty where no model learnt under fake quantisation.

    int8 is simulated as an export quantises: weights rounded, ranges of activations those of the calibration pictures.

    Args:
        recipe: that was trained.
        data: of the run.
        models: the trained networks, in float.
        encode: of the cloud model.

    Returns:
        Model -> ``bits`` (of ``weights`` and ``activations``), ``calibration`` (number of pictures), and under ``before`` and
        ``after``, for each split: M(q, g) by ``float`` and by ``int8`` queries, as metric -> value with its 95 % interval, and
        ``worst_cosine``, the first percentile of the cosines between the two, over ``n`` queries.
    """
    costs = {}
    for name, spec in recipe.models.items():
        if spec.quantise is None:
            continue
        first = start_of(name, spec).build().to(next(models[name].parameters()).device)
        costs[name] = {
            "bits": {"weights": spec.quantise.weight_bits, "activations": spec.quantise.activation_bits},
            "calibration": len(data.calibration()),
            "before": _cost(recipe, name, data, first, encode),
            "after": _cost(recipe, name, data, models[name], encode),
        }
    return costs


def _cost(recipe: Recipe, name: str, data: TrainingData, network: nn.Module, encode: Encode) -> dict[str, Any]:
    """Split -> what int8 costs one network."""
    spec, split = recipe.models[name], data.split
    assert spec.quantise is not None
    rounded = FakeQuantised(network, weight_bits=spec.quantise.weight_bits, activation_bits=spec.quantise.activation_bits)
    calibrate(rounded, spec.preprocess, data)
    sides = {
        "validation": (split.validation_query, split.validation_gallery),
        "test": (split.test_query, split.test_gallery),
    }
    cost = {}
    for side, (query, gallery) in sides.items():
        if not (query and gallery):
            continue
        pictures = data.prepared(query, spec.preprocess)
        exact, coarse = (embed(model, pictures, spec.preprocess) for model in (network, rounded))
        labels = [[data.images.items[index].label for index in part] for part in (query, gallery)]
        found = encode(recipe.cloud, gallery)
        cost[side] = {
            "float": _plain(measure(*comparable(exact, found), *labels)),
            "int8": _plain(measure(*comparable(coarse, found), *labels)),
            "worst_cosine": worst_percentile(cosine(coarse, exact), 1.0),
            "n": len(query),
        }
    return cost


def _plain(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {metric: asdict(estimate) for metric, estimate in cell.items()}
