"""What an artifact costs a device, without a stop-watch: arithmetic, weights, traffic and memory."""

from samespace.edge.devices.costs.artifact import ArtifactCosts, artifact_costs
from samespace.edge.devices.costs.graph import Graph, GraphCosts, Operation, Value
from samespace.edge.devices.costs.table import costs_text

__all__ = ["ArtifactCosts", "Graph", "GraphCosts", "Operation", "Value", "artifact_costs", "costs_text"]
