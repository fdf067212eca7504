"""A network in two: what no fine-tune changes, run once for each image, and the rest, which is linearised."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from samespace.cloud.finetune.linear import chosen

__all__ = ["cut"]


def cut(network: nn.Module, trained: Sequence[str] = ()) -> tuple[nn.Module, nn.Module]:
    """``(front, back)`` with ``network(x) = back(front(x))`` and all trained parameters in the back, under their names.

    The front is as long as it can be with one tensor between the two, and nothing of a network that ``torch.fx`` cannot trace.

    Raises:
        ConfigError: a name that nothing has.
    """
    wanted = chosen(network, trained)
    try:
        nodes = list(fx.Tracer().trace(network).nodes)
    except Exception:  # whatever the network's code does with what is no tensor yet
        return nn.Identity(), network
    begins = [any(name.startswith(_prefix(node)) for name in wanted) for node in nodes]
    first = next(place for place, found in enumerate(begins) if found)
    order = {node: place for place, node in enumerate(nodes)}
    # The earliest node that is read at or after each place.
    oldest, at = len(nodes), 0
    for place in range(len(nodes) - 1, -1, -1):
        if place < first and oldest >= place and nodes[place].op != "get_attr":
            at = place
            break
        oldest = min([oldest, *(order[read] for read in nodes[place].all_input_nodes)])
    front, back = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: at + 1]:
        copies[node] = front.node_copy(node, lambda read: copies[read])
    front.output(copies[nodes[at]])
    later = {nodes[at]: back.placeholder("features")}
    for node in nodes[at + 1 :]:
        later[node] = back.node_copy(node, lambda read: later[read])
    return fx.GraphModule(network, front), fx.GraphModule(network, back)


def _prefix(node: fx.Node) -> tuple[str, ...]:
    """Of the names of the parameters that a node uses."""
    return {"call_module": (f"{node.target}.",), "get_attr": (str(node.target),)}.get(node.op, ())
