"""Which step of an artifact is the first that computes something else than the reference."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt

from samespace.export.bisect.steps import Step, Trace

__all__ = ["Divergence", "diverging_step", "pairs"]

#: Share of the embedding's disagreement that the first diverging step must have; the rest of the way may add to it.
_SHARE = 0.25
#: Share of the line below which a disagreement is taken for rounding.
_ROUNDING = 0.1
#: What converters append to a name when they change its dtype.
_SUFFIX = re.compile(r"(_cast_fp16|_cast_fp32|_to_fp16|_to_fp32)+$")


@dataclass(frozen=True)
class Divergence:
    """The first step that differs from the reference, though what goes into it agrees.

    Attributes:
        operator: as the format calls it.
        name: of the operation in the artifact's file.
        index: place among the file's operations, counted from 0.
        tensor: its result.
        reference: name of the operation of the reference that it was compared with.
        cosine_before: of what goes into it, with the reference; the worst of its inputs. 1 where it takes the image.
        cosine_after: of its result; 0 when that has values that are not finite.
        norm_ratio: norm of its result over the reference's, for faults that a cosine does not see; 0 as above.
        embedding_cosine: of the embedding.
        compared: operations that were compared; ``operations`` of so many whose results can be seen.
    """

    operator: str
    name: str
    index: int
    tensor: str
    reference: str
    cosine_before: float
    cosine_after: float
    norm_ratio: float
    embedding_cosine: float
    compared: int
    operations: int

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.operator}, operation {self.index}) is the first that diverges: cosine to the reference "
            f"{self.cosine_before:.6f} before it and {self.cosine_after:.6f} after it, norm x {self.norm_ratio:.4g}; of the "
            f"embedding {self.embedding_cosine:.6f}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diverging_step(suspect: Trace, reference: Trace, limit: float) -> Divergence | None:
    """Find the step that disagrees first; None when the embeddings agree.

    Agreement of two results a, b (over all images at once) is ``2 <a, b> / (|a|² + |b|²)``: the cosine where the norms are
    equal, and less where they are not; what it lacks to 1 is the disagreement. The first step whose disagreement is above
    ``1 - limit``, and above a quarter of the embedding's, while all that goes into it stays below, shows that the fault is
    there or before. A fault of a few channels need not cross that line at once: of this step and those it depends on, the one
    whose disagreement is the largest multiple of its inputs' is named, where a tenth of the line counts as rounding.

    Args:
        suspect: the artifact's steps.
        reference: those of an artifact that is known to be right, for the same images.
        limit: lowest agreement of embeddings that is no divergence.
    """
    matched = pairs(suspect, reference)
    total = _disagreement(*matched[-1])
    if total <= 1 - limit:
        return None
    line = max(1 - limit, _SHARE * min(total, 1.0))
    wrong: dict[str, float] = {}
    sources: dict[str, set[str]] = {}
    found = matched[-1][0].result
    for step, other in matched:
        before = sources[step.result] = _nearest(step.result, suspect.parents, wrong)
        wrong[step.result] = _disagreement(step, other)
        if wrong[step.result] > line and all(wrong[name] <= line for name in before):
            found = step.result
            break

    def rise(pair: tuple[Step, Step]) -> float:
        name = pair[0].result
        return wrong[name] / max(line * _ROUNDING, *(wrong[source] for source in sources[name]), 0.0)

    suspects = _ancestors(found, sources)
    step, other = max((pair for pair in matched if pair[0].result in suspects), key=rise)
    by_name = {pair[0].result: pair for pair in matched}
    norms = [float(np.linalg.norm(value.astype(np.float64))) for value in (step.value, other.value)]
    return Divergence(
        operator=step.operator,
        name=step.name,
        index=step.index,
        tensor=step.result,
        reference=other.name,
        cosine_before=min((_cosine(*by_name[source]) for source in sources[step.result]), default=1.0),
        cosine_after=_cosine(step, other),
        norm_ratio=norms[0] / norms[1] if norms[1] and np.isfinite(norms[0]) else 0.0,
        embedding_cosine=_cosine(*matched[-1]),
        compared=len(matched),
        operations=len(suspect.steps),
    )


def pairs(suspect: Trace, reference: Trace) -> list[tuple[Step, Step]]:
    """Steps that compute the same tensor, in the suspect's order; the last pair is the embedding. Their shapes are equal.

    Where both graphs have the same operators in the same order, these are pairs. Else results of the same name are, and what
    then is left goes by order, operator and shape.
    """
    kinds, kinds_there = ([_kind(step) for step in trace.steps] for trace in (suspect, reference))
    if kinds == kinds_there:
        return list(zip(suspect.steps, reference.steps, strict=True))
    there = {_plain(step.result): place for place, step in enumerate(reference.steps)}
    partner: dict[int, int] = {len(kinds) - 1: len(kinds_there) - 1}
    for place, step in enumerate(suspect.steps[:-1]):
        other = there.get(_plain(step.result))
        if other is not None and reference.steps[other].value.shape == step.value.shape:
            partner[place] = other
    # A pair is one token of both sequences, so that what lies between two pairs is matched with what lies between them there.
    tokens: list[Any] = [partner.get(place, kind) for place, kind in enumerate(kinds)]
    taken = set(partner.values())
    tokens_there: list[Any] = [place if place in taken else kind for place, kind in enumerate(kinds_there)]
    for block in SequenceMatcher(None, tokens, tokens_there, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            partner.setdefault(block.a + offset, block.b + offset)
    return [(suspect.steps[place], reference.steps[other]) for place, other in sorted(partner.items())]


def _kind(step: Step) -> tuple[str, tuple[int, ...]]:
    return step.operator, step.value.shape


def _plain(name: str) -> str:
    return _SUFFIX.sub("", name)


def _nearest(result: str, parents: Mapping[str, tuple[str, ...]], known: Container[str]) -> set[str]:
    """The nearest of the ``known`` results that ``result`` is computed from."""
    found, todo, visited = set(), list(parents.get(result, ())), {result}
    while todo:
        name = todo.pop()
        if name in known:
            found.add(name)
        elif name not in visited:
            visited.add(name)
            todo += parents.get(name, ())
    return found


def _ancestors(result: str, sources: Mapping[str, set[str]]) -> set[str]:
    """A result and all that it is computed from."""
    found, todo = {result}, [result]
    while todo:
        more = sources[todo.pop()] - found
        found |= more
        todo += more
    return found


def _disagreement(step: Step, other: Step) -> float:
    a, b = _flat(step), _flat(other)
    if not np.isfinite(a).all():
        return 1.0
    total = float(a @ a + b @ b)
    return 1 - 2 * float(a @ b) / total if total else 0.0


def _cosine(step: Step, other: Step) -> float:
    a, b = _flat(step), _flat(other)
    if not np.isfinite(a).all():
        return 0.0
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale else float(not a.any() and not b.any())


def _flat(step: Step) -> npt.NDArray[np.float64]:
    return step.value.astype(np.float64).ravel()
