"""Candidates of one int8 artifact: made, judged, and remembered, since a search asks for some of them twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from samespace.export.options import ExportOptions
from samespace.export.quantisation.judge import HeldOut, Judgement
from samespace.export.quantisation.layers import LayerQuantiser
from samespace.sdk.runtimes.base import LoadedArtifact

__all__ = ["Trial", "Trials"]


@dataclass(frozen=True, eq=False)
class Trial:
    """A candidate.

    Attributes:
        float_layers: what it leaves in float, in the order of the graph.
        data: the artifact.
        judgement: on the held-out pictures.
    """

    float_layers: tuple[str, ...]
    data: bytes
    judgement: Judgement


class Trials:
    """Makes and judges candidates from one fp32 artifact.

    Args:
        quantiser: the exporter.
        fp32: the float artifact.
        like: the plain int8 artifact; candidates take its place.
        options: with calibration pictures.
        held_out: judges.
        say: called with a short text before each candidate.
    """

    def __init__(
        self,
        quantiser: LayerQuantiser,
        fp32: bytes,
        like: LoadedArtifact,
        options: ExportOptions,
        held_out: HeldOut,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        self.layers = quantiser.layers(fp32)
        self.fp32_bytes = len(fp32)
        self.say = say
        self._quantiser, self._fp32, self._like, self._options, self._held_out = quantiser, fp32, like, options, held_out
        self._made: dict[frozenset[str], Trial] = {}

    def leaving(self, float_layers: Sequence[str]) -> Trial:
        """The candidate that leaves these layers in float, whatever their order."""
        key = frozenset(float_layers)
        if key not in self._made:
            ordered = tuple(layer for layer in self.layers if layer in key)
            data = self._like.single_file if not key else self._quantise(ordered)
            judgement = self._held_out.judge(replace(self._like, files={"": data}))
            self._made[key] = Trial(ordered, data, judgement)
        return self._made[key]

    def forget(self, trial: Trial) -> None:
        """Give back the memory of a candidate that nobody will take."""
        self._made.pop(frozenset(trial.float_layers), None)

    def _quantise(self, float_layers: tuple[str, ...]) -> bytes:
        return self._quantiser.quantise(self._fp32, replace(self._options, float_layers=float_layers))
