"""A released model with adaptations: made anew from its weights and the whole set, as a model that exports like any other."""

from __future__ import annotations

from collections.abc import Sequence

import safetensors.torch
import torch
from torch import Tensor, nn

from samespace.cloud.finetune.adaptation import Adaptation, composed, total_change
from samespace.edge.models.linearised import two_streams
from samespace.export.run import RunModel
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import digest

__all__ = ["adapted", "released"]


def released(model: RunModel, adaptations: Sequence[Adaptation], *, linearised: bool = False) -> RunModel:
    """The model with the changes of a set of adaptations.

    Args:
        linearised: as its first-order expansion, of which the drift bound is true to the letter; it costs up to about three
            times the layers that change. Otherwise as the network with changed weights, at no cost.

    Raises:
        ConfigError: none, adaptations that are not of this model's weights, or layers that have no tangent.
    """
    if not adaptations:
        raise ConfigError("no adaptation is given; the released model is what there would be")
    record, base = model.record, safetensors.torch.load(model.weights)
    floats = {name: tensor.numpy() for name, tensor in base.items() if tensor.is_floating_point()}
    if not linearised:
        changed = composed(floats, record.weights_sha256, adaptations)
        tensors = {**base, **{name: torch.from_numpy(value) for name, value in changed.items()}}
        return _model(model, {}, tensors)
    if record.family == "linearised":
        raise ConfigError("a linearised model cannot be linearised again; compose its adaptations over the released one")
    changes = total_change({name: value.shape for name, value in floats.items()}, record.weights_sha256, adaptations)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in changes))
    network = two_streams(_whole(model, layers), layers)
    state = network.state_dict()
    for name, change in changes.items():
        path, _, parameter = name.rpartition(".")
        state[f"layers.{path.replace('.', '/')}.delta_{parameter}"] = torch.from_numpy(change).float()
    own = {key: value for key, value in record.arguments.items() if key not in ("dim", "image_size")}
    facts = {"family": record.family, "arguments": own, "trained": layers}
    sized = {key: record.arguments[key] for key in ("dim", "image_size")}
    return _model(model, {"family": "linearised", "arguments": {**sized, **facts}}, state)


def adapted(model: RunModel, adaptations: Sequence[Adaptation]) -> nn.Module:
    """The network with the changes of a set of adaptations, perhaps none, in evaluation mode.

    Raises:
        ConfigError: adaptations that are not of this model's weights.
    """
    return released(model, adaptations).build() if adaptations else model.build()


def _whole(model: RunModel, layers: Sequence[str]) -> nn.Module:
    network = model.build()
    for path in layers:
        if not path:
            raise ConfigError("a parameter outside of any layer changes; such a model has no explicit two-stream graph")
        network.get_submodule(path)
    return network


def _model(model: RunModel, facts: dict[str, object], tensors: dict[str, Tensor]) -> RunModel:
    weights = safetensors.torch.save({name: value.detach().clone().contiguous() for name, value in tensors.items()})
    facts = {**facts, "name": f"{model.record.name}-adapted", "weights_sha256": digest(weights)}
    record = type(model.record).model_validate({**model.record.model_dump(), **facts, "role": "edge"})
    return RunModel(f"{model.name}-adapted", record, weights)
