"""Judging a report: limits per precision, and a verdict that says why.

Retrieval is judged by a paired non-inferiority test with a stated margin. The interval of *device - reference*, query by
query, clear of ``-margin`` passes; beyond it fails; across it is inconclusive, and the number of queries that would decide is
estimated. Where device and reference find the same for every query, the difference is exactly 0 with no spread, and passes.

Mean cosines are reported and never judged: a model may keep a mean of 0.9999 and lose half of its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samespace.sdk.check.chance import chance_tail, queries_needed
from samespace.sdk.check.report import CompatibilityReport, EmbeddingLayer, Hits, RetrievalLayer, Settings, TensorLayer
from samespace.sdk.errors import ConfigError
from samespace.sdk.metrics import Estimate, bootstrap_mean

__all__ = ["EXIT_CODES", "Finding", "Gate", "Judged", "Outcome", "Verdict", "reasons_of", "worst_outcome"]

Outcome = Literal["pass", "fail", "inconclusive"]
Check = Literal["runs", "probes", "tensor", "cosine", "overlap", "space", "recall", "hard overlap", "hard recall"]

#: Of ``samespace check`` and of a verdict; 2 is the command line's own usage error.
EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}

#: A gallery of so few labels shows nothing: a random ranking is right too often.
_MAX_CHANCE = 0.5


def worst_outcome(outcomes: list[Outcome]) -> Outcome:
    """fail before inconclusive before pass."""
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"


class Judged(Protocol):
    """One thing that was judged, by whatever check."""

    @property
    def outcome(self) -> Outcome: ...

    @property
    def message(self) -> str: ...


def reasons_of(findings: Sequence[Judged]) -> tuple[str, ...]:
    """Messages of all that did not pass, failures first."""
    order: tuple[Outcome, ...] = ("fail", "inconclusive")
    return tuple(finding.message for outcome in order for finding in findings if finding.outcome == outcome)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Finding(_Part):
    """One thing that was judged."""

    check: Check
    outcome: Outcome
    message: str


class Verdict(_Part):
    """What a gate says about a report."""

    outcome: Outcome
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.outcome]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Messages of all that did not pass, failures first."""
        return reasons_of(self.findings)


class Gate(_Part):
    """Limits. Rates are 0-1, so a margin of half a point is 0.005."""

    worst_cosine: float = Field(ge=-1, le=1, description="lowest worst-1 % cosine to the fp32 reference")
    overlap: float = Field(ge=0, le=1, description="lowest mean share of the nearest neighbours kept")
    recall_margin: float = Field(ge=0, le=1, description="how far recall@1 may fall below the reference's")
    # By default the hardest queries may lose twice the neighbours, and the hardest quarter all that the whole may lose.
    hard_overlap: float | None = Field(default=None, ge=0, le=1, description="overlap, of the hardest queries")
    hard_margin: float | None = Field(default=None, ge=0, le=1, description="recall_margin, of the hardest queries")
    retention: float = Field(
        default=0.1, ge=0, le=1, description="share of the cloud's recall@1 below which the model is in no common space"
    )
    max_tensor_difference: int = Field(default=0, ge=0, le=255, description="levels; 0: preprocessing is bit-exact")
    min_probes: int = Field(default=64, ge=1, description="fewer decide nothing")

    @classmethod
    def default(cls, precision: str) -> Self:
        """The limits for a precision.

        A trained network of 2 M parameters came to a minimum of 0.99999 and more in fp32, 0.99999 in fp16, 0.993-0.996 in
        static int8, 0.999 in dynamic int8 and with int8 weights, 0.994 with palettes of 6 bits and 0.78-0.84 with those of 4:
        each limit is met with room for a harder model. Dynamic int8 rounds the weights as static int8 does, so it has the same
        limits; they tell it from the garbage (0.05) that a runtime makes of an operator it does not know. 4 bits mostly miss
        theirs, which is no reason to lower it.

        Raises:
            ConfigError: another precision.
        """
        limits = {
            "fp32": {"worst_cosine": 0.99999, "overlap": 0.99, "recall_margin": 0.005},
            "fp16": {"worst_cosine": 0.999, "overlap": 0.95, "recall_margin": 0.01},
            "int8": {"worst_cosine": 0.98, "overlap": 0.75, "recall_margin": 0.01},
            "int8-dynamic": {"worst_cosine": 0.98, "overlap": 0.75, "recall_margin": 0.01},
            "palette6": {"worst_cosine": 0.98, "overlap": 0.75, "recall_margin": 0.01},
            "palette4": {"worst_cosine": 0.95, "overlap": 0.6, "recall_margin": 0.02},
        }
        if precision not in limits:
            raise ConfigError(f"no limits for the precision {precision!r}; there are: {', '.join(limits)}")
        return cls.model_validate(limits[precision])

    @classmethod
    def of(cls, report: CompatibilityReport) -> Self:
        """The default limits of the report's precision, or what its bundle asks for where that is stricter."""
        return cls.default(report.precision).tightened(report.gates)

    @property
    def hard_limits(self) -> dict[str, float]:
        """``hard_overlap`` and ``hard_margin``, whether given or following from the limits of all queries."""
        return {
            "hard_overlap": max(0.0, 2 * self.overlap - 1) if self.hard_overlap is None else self.hard_overlap,
            "hard_margin": min(1.0, 4 * self.recall_margin) if self.hard_margin is None else self.hard_margin,
        }

    def tightened(self, limits: Mapping[str, float]) -> Self:
        """This gate with each of ``limits`` that is stricter: a bundle may ask for more than the default, never for less.

        Raises:
            ConfigError: an unknown limit, or one out of range.
        """
        lowest = {"worst_cosine", "overlap", "hard_overlap", "retention", "min_probes"}
        highest = {"recall_margin", "hard_margin", "max_tensor_difference"}
        if unknown := sorted(set(limits) - lowest - highest):
            raise ConfigError(f"unknown limits {unknown}; there are: {', '.join(sorted(lowest | highest))}")
        mine = self.model_dump() | self.hard_limits
        stricter = {name: (max if name in lowest else min)(mine[name], limit) for name, limit in limits.items()}
        return self.replaced(**stricter)

    def replaced(self, **limits: float) -> Self:
        """This gate with other limits, checked.

        Raises:
            ConfigError: an unknown limit, or one out of range.
        """
        try:
            return type(self).model_validate(self.model_dump() | limits)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigError(f"limit {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}") from None

    def judge(self, report: CompatibilityReport) -> Verdict:
        """Judge what was measured; fails when anything fails, and is inconclusive when nothing fails but something is open."""
        findings = [] if report.tensor is None else [self._tensor(report.tensor)]
        if report.embedding is None or report.retrieval is None:
            findings.insert(0, Finding(check="runs", outcome="fail", message=f"no usable embeddings: {report.refused}"))
        else:
            findings += [
                self._probes(report.embedding.n),
                self._cosine(report.embedding, report.settings),
                self._overlap(report.retrieval, report.settings),
                self._space(report.retrieval, report.settings),
            ]
            if report.retrieval.recall:
                findings.append(self._recall(report.retrieval, report.settings))
            findings += self._hard(report.retrieval, report.settings)
        return Verdict(outcome=worst_outcome([finding.outcome for finding in findings]), findings=tuple(findings))

    def _tensor(self, layer: TensorLayer) -> Finding:
        if layer.max_difference <= self.max_tensor_difference:
            return _finding("tensor", "pass", f"preprocessing: {layer.exact} of {layer.n} tensors are bit-exact")
        wrong = layer.n - layer.exact
        return _finding(
            "tensor",
            "fail",
            f"preprocessing: {wrong} of {layer.n} tensors differ from the golden ones, by up to {layer.max_difference} levels "
            f"(probe {layer.worst[0].probe}); compare decoding, colour order and resize filter with the bundle's preprocess",
        )

    def _probes(self, n: int) -> Finding:
        if n >= self.min_probes:
            return _finding("probes", "pass", f"{n} probe images")
        return _finding("probes", "inconclusive", f"only {n} probe images; {self.min_probes} would decide")

    def _cosine(self, layer: EmbeddingLayer, settings: Settings) -> Finding:
        case = layer.worst[0]
        text = (
            f"worst-{settings.worst_percent:g} % cosine to the reference {layer.worst_cosine:.7f} "
            f"(limit {self.worst_cosine:g}), minimum {layer.min_cosine:.7f} (probe {case.probe})"
        )
        if layer.worst_cosine >= self.worst_cosine:
            return _finding("cosine", "pass", text)
        return _finding("cosine", "fail", f"{text}: this artifact in this runtime is not the model that was exported")

    def _overlap(self, layer: RetrievalLayer, settings: Settings) -> Finding:
        text = f"neighbours kept of the {layer.overlap_k} nearest"
        return _kept("overlap", text, layer.overlap, layer.overlaps, self.overlap, settings)

    def _space(self, layer: RetrievalLayer, settings: Settings) -> Finding:
        """Whether gallery and model share a space at all: both at chance would agree perfectly and mean nothing."""
        if layer.hits is None or layer.chance is None:
            if layer.gallery_model_id is not None:
                return _finding("space", "pass", f"the gallery is of {layer.gallery_model_id}")
            return _finding(
                "space",
                "inconclusive",
                f"nothing says which model embedded {layer.gallery}, and there are no labels to find out; "
                "add 'model_id' or 'labels' to it",
            )
        n, chance = layer.queries, layer.chance
        if chance > _MAX_CHANCE:
            return _finding(
                "space",
                "inconclusive",
                f"a random ranking is right for {100 * chance:.3g} % of the queries: too few labels to judge by",
            )
        cloud, model = sum(layer.hits.cloud), sum(layer.hits.reference)
        level = (1 - settings.confidence) / 2
        found = f"recall@1 in this gallery: cloud model {cloud} of {n}, this model {model} of {n}, chance {100 * chance:.2g} %"
        if chance_tail(cloud, n, chance) > level:
            return _finding(
                "space", "fail", f"{found}: the cloud model itself finds nothing here, so this gallery is of another space"
            )
        share = np.asarray(layer.hits.reference, float) - self.retention * np.asarray(layer.hits.cloud, float)
        retained = bootstrap_mean(share, settings.n_boot, settings.seed, settings.confidence)
        if retained.high < 0:
            return _finding(
                "space",
                "fail",
                f"{found}: below {100 * self.retention:g} % of the cloud model, so this model does not embed into the "
                "gallery's space; train it together with the cloud model",
            )
        if chance_tail(model, n, chance) > level:
            return _finding("space", "inconclusive", f"{found}: not clear of chance; check with more labelled probes")
        return _finding("space", "pass", found)

    def _recall(self, layer: RetrievalLayer, settings: Settings) -> Finding:
        difference = layer.recall[1].difference if 1 in layer.recall else None
        if difference is None or layer.hits is None:
            return _finding("recall", "inconclusive", "recall@1 was not measured; measure again with 1 among recall_k")
        text = "recall@1 of the device less the reference's"
        finding = _not_inferior("recall", text, difference, layer.hits, None, self.recall_margin, settings)
        if finding.outcome == "pass" and layer.queries < self.min_probes:
            return _finding(
                "recall",
                "inconclusive",
                f"{finding.message}, but only {layer.queries} queries have a match; {self.min_probes} would decide",
            )
        return finding

    def _hard(self, layer: RetrievalLayer, settings: Settings) -> list[Finding]:
        """The same for the queries that the reference decides most narrowly, with limits of their own."""
        hard = layer.hard
        if hard is None:
            return []
        who = f"of the hardest {hard.overlap.n} queries"
        overlaps = tuple(layer.overlaps[probe] for probe in hard.probe)
        text = f"neighbours kept of the {layer.overlap_k} nearest, {who}"
        findings = [_kept("hard overlap", text, hard.overlap, overlaps, self.hard_limits["hard_overlap"], settings)]
        if hard.recall is not None and layer.hits is not None:
            text, margin = f"recall@1 of the device less the reference's, {who}", self.hard_limits["hard_margin"]
            difference = hard.recall.difference
            findings.append(_not_inferior("hard recall", text, difference, layer.hits, hard.probe, margin, settings))
        return findings


def _kept(check: Check, what: str, overlap: Estimate, overlaps: Sequence[float], limit: float, settings: Settings) -> Finding:
    text = f"{what}: {overlap}, limit {100 * limit:g}"
    if overlap.low >= limit:
        return _finding(check, "pass", text)
    if overlap.high < limit:
        return _finding(check, "fail", f"{text}: the device ranks differently from the reference")
    count = queries_needed(np.asarray(overlaps), limit, settings.confidence)
    return _finding(check, "inconclusive", f"{text}: the interval is across the limit; {count} probes would decide")


def _not_inferior(
    check: Check,
    what: str,
    difference: Estimate,
    hits: Hits,
    probes: Sequence[int] | None,
    margin: float,
    settings: Settings,
) -> Finding:
    """``difference`` is of the queries ``probes``, or of all."""
    text = f"{what}: {difference.text()} points (n={difference.n}), margin {100 * margin:g}"
    if difference.high < -margin:
        return _finding(check, "fail", f"{text}: the device finds fewer right items")
    if difference.low >= -margin:
        return _finding(check, "pass", text)
    each = np.asarray(hits.device, float) - np.asarray(hits.reference, float)
    rows = slice(None) if probes is None else np.isin(hits.probe, probes)
    count = queries_needed(each[rows], -margin, settings.confidence)
    return _finding(check, "inconclusive", f"{text}: the interval is across the margin; {count} queries would decide")


def _finding(check: Check, outcome: Outcome, message: str) -> Finding:
    return Finding(check=check, outcome=outcome, message=message)
