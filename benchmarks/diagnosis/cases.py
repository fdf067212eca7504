"""The cases: what is planted in a subject, what a device then gives, and what should be said of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from planted import PLANTS, STRANGE, Plant, app_input, strange_input
from world import Subject

from samespace.edge.models.registry import build_model
from samespace.export.torch_runtime import embed
from samespace.sdk.check.gate import Gate
from samespace.sdk.metrics import cosine, worst_percentile

__all__ = ["Case", "healthy", "model_faults", "pairs", "singles", "strange"]

#: A second mistake that moves the artifact's own output by less than this mean squared distance leaves no trace in it.
_VISIBLE = {"fp32": 1e-6, "fp16": 1e-5, "int8": 1e-3}


@dataclass(frozen=True, eq=False)
class Case:
    """One device's embeddings.

    Attributes:
        kind: ``single``, ``pair``, ``unknown``, ``healthy`` or ``model`` (a fault that is not the app's).
        subject: name; precision: of the artifact.
        planted: what was done, in words.
        expected: the causes that are right; none for a healthy artifact.
        embeddings: ``(n, d)`` as the device gives them.
        tensors: ``(n, size, size, 3)`` uint8 that the app fed, where they fit into bytes.
    """

    kind: str
    subject: str
    precision: str
    planted: str
    expected: frozenset[str]
    embeddings: np.ndarray = field(repr=False)
    tensors: np.ndarray | None = field(default=None, repr=False)


def singles(subject: Subject, precision: str) -> Iterator[Case]:
    """Each way of making each mistake that makes a difference to these probes."""
    for plant in PLANTS:
        values = _fed(subject, [plant])
        rows = _given(subject, precision, values, [plant])
        if plant.stage in ("norm", "values", "colour", "layout") or _matters(subject, values):
            yield _case("single", subject, precision, [plant], values, rows)


def pairs(subject: Subject, precision: str, generator: np.random.Generator, count: int) -> Iterator[Case]:
    """``count`` pairs of mistakes of different stages, drawn; only pairs in which both leave a trace in the output."""
    possible = [(a, b) for a, b in itertools.combinations(PLANTS, 2) if a.stage != b.stage]
    made = 0
    for place in generator.permutation(len(possible)):
        both = possible[place]
        if made == count:
            return
        values = _fed(subject, both)
        rows = _given(subject, precision, values, both)
        alone = [_given(subject, precision, _fed(subject, [plant]), [plant]) for plant in both]
        if min(_moved(rows, single, norms="norm" in {p.stage for p in both}) for single in alone) > _VISIBLE[precision]:
            made += 1
            yield _case("pair", subject, precision, both, values, rows)


def strange(subject: Subject, precision: str) -> Iterator[Case]:
    """Mistakes that nothing is known of."""
    for name in STRANGE:
        values = strange_input(subject.probes.golden, name)
        rows = subject.artifacts[precision](values)
        yield Case("unknown", subject.name, precision, name, frozenset({"unknown"}), rows, _bytes(values))


def healthy(subject: Subject, precision: str) -> Iterator[Case]:
    """The artifact as it is; one that misses its own gate on these probes, of which export makes no bundle, is a fault."""
    values = subject.probes.golden.astype(np.float32)
    rows = subject.artifacts[precision](values)
    passes = worst_percentile(cosine(rows, subject.probes.reference), 1.0) >= Gate.default(precision).worst_cosine
    kind, expected = ("healthy", frozenset()) if passes else ("model", frozenset({"quantisation_error"}))
    yield Case(kind, subject.name, precision, "nothing", expected, rows, _bytes(values))


def model_faults(subject: Subject, precision: str, others: Mapping[str, np.ndarray], seed: int = 0) -> Iterator[Case]:
    """Faults that are not the app's: another revision, an overflow of half precision.

    Args:
        subject: whose probes they are.
        precision: of the artifact that the device says it ran.
        others: name -> embeddings of the probes by other revisions of the model.
        seed: of the rows that overflow.
    """
    for name, rows in others.items():
        yield Case("model", subject.name, precision, f"revision {name}", frozenset({"other_revision"}), rows)
    overflowing = _overflowed(subject)
    if overflowing is not None and precision == "fp16":
        yield Case("model", subject.name, precision, "overflow", frozenset({"fp16_overflow"}), overflowing)


def _overflowed(subject: Subject) -> np.ndarray:
    """A norm that squares in half precision, as older exports did, behind a last layer of large outputs."""
    network = build_model(subject.model.record.family, dict(subject.model.record.arguments))
    network.load_state_dict(subject.model.build().state_dict())
    record = subject.model.record.model_copy(update={"preprocess": subject.preprocess})
    raw = embed(network.eval(), record, subject.probes.golden, l2=False)
    # Outputs for which half of the squared norms pass 65504.
    large = raw * np.float32(np.sqrt(65504) / np.median(np.linalg.norm(raw, axis=1)))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        half = large.astype(np.float16)
        total = (half * half).sum(axis=1, keepdims=True, dtype=np.float16)
        return (half * (np.float16(1) / np.sqrt(total))).astype(np.float32)


def _fed(subject: Subject, plants: Sequence[Plant]) -> np.ndarray:
    preprocess = subject.preprocess
    return app_input(
        subject.probes.images,
        plants,
        size=preprocess.size,
        fit=preprocess.fit,
        background=preprocess.background,
        mean=preprocess.mean,
        std=preprocess.std,
    )


def _given(subject: Subject, precision: str, values: np.ndarray, plants: Sequence[Plant]) -> np.ndarray:
    rows = subject.artifacts[precision](values)
    if not any(plant.stage == "norm" for plant in plants):
        return rows
    raw = subject.probes.mistakes["no_l2"]
    norms = np.linalg.norm(raw, axis=1)
    # The artifact ends in its norm: what it would give without it, by the norms of this model's own outputs.
    return rows * np.resize(norms, len(rows))[:, None].astype(np.float32)


def _matters(subject: Subject, values: np.ndarray) -> bool:
    return bool(np.abs(values - subject.probes.golden).reshape(len(values), -1).mean(axis=1).max() > 0.5)


def _moved(rows: np.ndarray, other: np.ndarray, *, norms: bool) -> float:
    if norms and abs(np.linalg.norm(rows, axis=1) - np.linalg.norm(other, axis=1)).max() > 0.01:
        return 1.0
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (rows, other))
    return float(((a - b) ** 2).sum(axis=1).mean())


def _case(kind: str, subject: Subject, precision: str, plants: Sequence[Plant], values: np.ndarray, rows: np.ndarray) -> Case:
    words = " + ".join(f"{plant.cause} ({plant.name})" for plant in plants)
    causes = frozenset(plant.cause for plant in plants)
    return Case(kind, subject.name, precision, words, causes, rows, _bytes(values))


def _bytes(values: np.ndarray) -> np.ndarray | None:
    whole = np.rint(values)
    return whole.astype(np.uint8) if values.min() >= 0 and values.max() <= 255 and np.abs(values - whole).max() < 1e-3 else None
