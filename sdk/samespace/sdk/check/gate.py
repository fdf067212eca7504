"""Judging a report: limits per precision, and a verdict that says why.

Retrieval is judged by a paired non-inferiority test with a stated margin. The interval of *device - reference*, query by
query, clear of ``-margin`` passes; beyond it fails; across it is inconclusive, and the number of queries that would decide is
estimated. Where device and reference find the same for every query, the difference is exactly 0 with no spread, and passes.

Mean cosines are reported and never judged: a model may keep a mean of 0.9999 and lose half of its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samespace.sdk.check.report import CompatibilityReport, EmbeddingLayer, RetrievalLayer, Settings, TensorLayer
from samespace.sdk.errors import ConfigError
from samespace.sdk.metrics import bootstrap_mean

__all__ = ["EXIT_CODES", "Finding", "Gate", "Outcome", "Verdict", "worst_outcome"]

Outcome = Literal["pass", "fail", "inconclusive"]

#: Of ``samespace check`` and of a verdict; 2 is the command line's own usage error.
EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "inconclusive": 3}

#: More queries than anyone will collect: said as "more than".
_MAX_QUERIES = 1_000_000

#: A gallery of so few labels shows nothing: a random ranking is right too often.
_MAX_CHANCE = 0.5


def worst_outcome(outcomes: list[Outcome]) -> Outcome:
    """fail before inconclusive before pass."""
    return "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Finding(_Part):
    """One thing that was judged."""

    check: Literal["runs", "probes", "tensor", "cosine", "overlap", "space", "recall"]
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
        order: tuple[Outcome, ...] = ("fail", "inconclusive")
        return tuple(finding.message for outcome in order for finding in self.findings if finding.outcome == outcome)


class Gate(_Part):
    """Limits. Rates are 0-1, so a margin of half a point is 0.005."""

    worst_cosine: float = Field(ge=-1, le=1, description="lowest worst-1 % cosine to the fp32 reference")
    overlap: float = Field(ge=0, le=1, description="lowest mean share of the nearest neighbours kept")
    recall_margin: float = Field(ge=0, le=1, description="how far recall@1 may fall below the reference's")
    retention: float = Field(
        default=0.1, ge=0, le=1, description="share of the cloud's recall@1 below which the model is in no common space"
    )
    max_tensor_difference: int = Field(default=0, ge=0, le=255, description="levels; 0: preprocessing is bit-exact")
    min_probes: int = Field(default=64, ge=1, description="fewer decide nothing")

    @classmethod
    def default(cls, precision: str) -> Self:
        """The limits for ``fp32``, ``fp16`` or ``int8``.

        Raises:
            ConfigError: another precision.
        """
        limits = {
            "fp32": {"worst_cosine": 0.99999, "overlap": 0.99, "recall_margin": 0.005},
            "fp16": {"worst_cosine": 0.999, "overlap": 0.95, "recall_margin": 0.01},
            "int8": {"worst_cosine": 0.98, "overlap": 0.75, "recall_margin": 0.02},
        }
        if precision not in limits:
            raise ConfigError(f"no limits for the precision {precision!r}; there are: {', '.join(limits)}")
        return cls.model_validate(limits[precision])

    @classmethod
    def of(cls, report: CompatibilityReport) -> Self:
        """The default limits of the report's precision, or what its bundle asks for where that is stricter."""
        return cls.default(report.precision).tightened(report.gates)

    def tightened(self, limits: Mapping[str, float]) -> Self:
        """This gate with each of ``limits`` that is stricter: a bundle may ask for more than the default, never for less.

        Raises:
            ConfigError: an unknown limit, or one out of range.
        """
        lowest, highest = {"worst_cosine", "overlap", "retention", "min_probes"}, {"recall_margin", "max_tensor_difference"}
        if unknown := sorted(set(limits) - lowest - highest):
            raise ConfigError(f"unknown limits {unknown}; there are: {', '.join(sorted(lowest | highest))}")
        mine = self.model_dump()
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
        findings = [self._tensor(report.tensor)]
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
        text = f"neighbours kept of the {layer.overlap_k} nearest: {layer.overlap}, limit {100 * self.overlap:g}"
        if layer.overlap.low >= self.overlap:
            return _finding("overlap", "pass", text)
        if layer.overlap.high < self.overlap:
            return _finding("overlap", "fail", f"{text}: the device ranks differently from the reference")
        needed = _needed(np.asarray(layer.overlaps), self.overlap, settings.confidence)
        return _finding("overlap", "inconclusive", f"{text}: the interval is across the limit; {needed} probes would decide")

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
        if _tail(cloud, n, chance) > level:
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
        if _tail(model, n, chance) > level:
            return _finding("space", "inconclusive", f"{found}: not clear of chance; check with more labelled probes")
        return _finding("space", "pass", found)

    def _recall(self, layer: RetrievalLayer, settings: Settings) -> Finding:
        difference = layer.recall[1].difference if 1 in layer.recall else None
        if difference is None or layer.hits is None:
            return _finding("recall", "inconclusive", "recall@1 was not measured; measure again with 1 among recall_k")
        margin = f"margin {100 * self.recall_margin:g}"
        text = f"recall@1 of the device less the reference's: {difference.text()} points (n={difference.n}), {margin}"
        if difference.high < -self.recall_margin:
            return _finding("recall", "fail", f"{text}: the device finds fewer right items")
        if difference.low < -self.recall_margin:
            each = np.asarray(layer.hits.device, float) - np.asarray(layer.hits.reference, float)
            needed = _needed(each, -self.recall_margin, settings.confidence)
            return _finding(
                "recall", "inconclusive", f"{text}: the interval is across the margin; {needed} queries would decide"
            )
        if layer.queries < self.min_probes:
            return _finding(
                "recall",
                "inconclusive",
                f"{text}, but only {layer.queries} queries have a match; {self.min_probes} would decide",
            )
        return _finding("recall", "pass", text)


def _finding(
    check: Literal["runs", "probes", "tensor", "cosine", "overlap", "space", "recall"], outcome: Outcome, message: str
) -> Finding:
    return Finding(check=check, outcome=outcome, message=message)


def _needed(values: np.ndarray, limit: float, confidence: float) -> str:
    """About how many values would put the limit outside the interval, if mean and spread stay as they are.

    Normal approximation: ``z * sd / sqrt(n) = |mean - limit|``.
    """
    distance = abs(float(values.mean()) - limit)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    spread = float(values.std())
    if distance * math.sqrt(_MAX_QUERIES) <= z * spread:
        return f"more than {_MAX_QUERIES}"
    return f"about {max(len(values) + 1, math.ceil((z * spread / distance) ** 2))}"


def _tail(hits: int, n: int, chance: float) -> float:
    """P(at least ``hits`` of ``n`` by chance), binomial; summed from the far end, where the terms are small."""
    if hits == 0 or chance >= 1:
        return 1.0
    if chance <= 0:
        return 0.0
    logs = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(chance) + (n - i) * math.log1p(-chance)
        for i in range(n, hits - 1, -1)
    )
    return min(1.0, math.fsum(math.exp(value) for value in logs))
