"""Static int8 that knows what it is for: plain where plain is good enough, mixed where it is not, and a record of why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from samespace.export.formats.base import Conversion, Exporter, artifact_of
from samespace.export.graph import DeviceGraph
from samespace.export.options import ExportOptions
from samespace.export.quantisation.judge import Aim, HeldOut
from samespace.export.quantisation.layers import LayerQuantiser
from samespace.export.quantisation.mixed import FLOAT_SHARE, Mixed, keep_worst_in_float
from samespace.export.quantisation.sensitivity import sensitivity
from samespace.export.quantisation.trials import Trials
from samespace.sdk.bundle import artifact_id
from samespace.sdk.check.gate import Gate
from samespace.sdk.runtimes.base import LoadedArtifact

__all__ = ["Search", "choose_int8"]


@dataclass(frozen=True)
class Search:
    """How far the search for float layers may go.

    Attributes:
        float_share: see :func:`.mixed.keep_worst_in_float`; 0 is plain int8 only.
        table: measure every layer's cost even where plain int8 meets the gate.
    """

    float_share: float = FLOAT_SHARE
    table: bool = False


def choose_int8(
    exporter: Exporter,
    graph: DeviceGraph,
    options: ExportOptions,
    held_out: HeldOut,
    dim: int,
    search: Search | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Conversion:
    """Convert to static int8, judge it on the held-out pictures, and leave layers in float where it misses the gate.

    Args:
        exporter: of a format; one that is no :class:`LayerQuantiser` gives plain int8, judged.
        graph: the model.
        options: with calibration pictures. Layers that the options leave in float are the user's choice: there is no search.
        held_out: judges.
        dim: of the embedding.
        search: its limits; by default those of :class:`Search`.
        say: called with what is being done.

    Returns:
        The conversion; its ``quantisation`` holds ``aim``, the judgements ``plain`` and ``chosen``, ``float_layers``, their
        ``share``, ``met`` and ``why``, and ``sensitivity`` where it was measured. A miss is no error here: the probes decide.
    """
    search = search or Search()
    plain = exporter.convert(graph, "int8", options)
    aim = Aim.of(Gate.default("int8"))
    entry = artifact_of(plain, type(exporter), "int8", artifact_id(plain.files))
    loaded = LoadedArtifact(entry, plain.files, graph.preprocess.size, dim)
    judgement = held_out.judge(loaded)
    met = aim.met(judgement)
    about: dict[str, Any] = {
        "aim": asdict(aim),
        "plain": judgement.to_json(),
        "chosen": judgement.to_json(),
        "float_layers": list(options.float_layers),
        "share": 0.0,
        "met": met,
        "why": "plain int8 meets the gate" if met else "plain int8 misses the gate",
        "sensitivity": [],
    }
    searching = not met and search.float_share > 0 and not options.float_layers
    if not isinstance(exporter, LayerQuantiser) or not (searching or search.table):
        return replace(plain, quantisation=about)
    say("measuring the cost of each layer")
    trials = Trials(exporter, exporter.convert(graph, "fp32", options).files[""], loaded, options, held_out, say)
    costs = sensitivity(trials, aim)
    about["sensitivity"] = [cost.to_json() for cost in costs]
    if not searching:
        return replace(plain, quantisation=about)
    return _with(plain, keep_worst_in_float(trials, costs, aim, search.float_share), about)


def _with(plain: Conversion, mixed: Mixed, about: dict[str, Any]) -> Conversion:
    layers = list(mixed.trial.float_layers)
    about |= {
        "chosen": mixed.trial.judgement.to_json(),
        "float_layers": layers,
        "share": mixed.share,
        "met": mixed.met,
        "why": mixed.why,
    }
    recipe = plain.recipe | {"float_layers": layers, "float_share": round(mixed.share, 4)}
    return replace(plain, files={"": mixed.trial.data}, recipe=recipe if layers else plain.recipe, quantisation=about)
