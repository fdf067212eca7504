"""An adapter folded into the model whose embeddings it takes: a run with one more model, which exports as any other."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from samespace.cloud.derived import write_derived
from samespace.edge.models.registry import build_model
from samespace.export.run import RunModel, read_run
from samespace.sdk.adapter import Adapter
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import ModelRecord, digest

__all__ = ["fold"]


def fold(run: Path, name: str, adapter: Adapter, space: Path, output: Path) -> ModelRecord:
    """Write a run in which the model ``name`` gives what the adapter makes of its embeddings.

    Args:
        run: finished run of the model.
        name: the model's name in it.
        adapter: takes the model's embeddings.
        space: finished run of the model whose space the adapter leads into; its probes and gallery judge the export.
        output: folder of the new run; must not exist.

    Returns:
        the record of the model with its adapter.

    Raises:
        ConfigError: the adapter is of other models, needs side information, or the folder exists.
    """
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another folder")
    (model,), target = read_run(run).choose((name,)), read_run(space)
    record = adapter.record
    if record.source_model_id != model.record.model_id:
        raise ConfigError(
            f"the adapter takes embeddings of {record.source_model_id}; {name!r} of {run} is {model.record.model_id}"
        )
    if record.target_model_id != target.cloud.record.model_id:
        raise ConfigError(
            f"the adapter leads to {record.target_model_id}; the space of {space} was founded by {target.cloud.record.model_id}"
        )
    if record.side_dim:
        raise ConfigError("the adapter needs side information, which a device does not have; fit one without --side")
    base = model.record
    arguments = {
        "dim": adapter.target_dim,
        "image_size": base.preprocess.size,
        "family": base.family,
        "arguments": base.arguments,
        "hidden": [adapter.tensors[f"hidden.{place}.bias"].shape[0] for place in range(adapter.hidden_layers)],
        "bias": "linear.bias" in adapter.tensors,
    }
    network = build_model("adapted", arguments, weights_follow=True)
    weights = {f"base.{key}": value for key, value in model.build().state_dict().items()}
    for key, value in adapter.tensors.items():
        if not key.startswith("sigma."):
            weights[key] = torch.from_numpy(value.T.copy() if key.endswith(".weight") else value)
    network.load_state_dict(weights, strict=True)
    data = safetensors.torch.save({key: value.contiguous() for key, value in network.state_dict().items()})
    folded = ModelRecord(
        name=f"{base.name}-adapted",
        role="edge",
        family="adapted",
        arguments=arguments,
        dim=adapter.target_dim,
        preprocess=base.preprocess,
        weights_sha256=digest(data),
    )
    write_derived(output, target, RunModel(f"{name}-adapted", folded, data))
    return folded
