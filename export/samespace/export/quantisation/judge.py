"""What int8 costs, measured where it matters: on pictures that gave no ranges, in the space that the cloud model founded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from samespace.sdk.check.gate import Gate
from samespace.sdk.errors import SamespaceError
from samespace.sdk.metrics import Estimate, cosine, neighbour_overlap, paired_bootstrap, worst_percentile
from samespace.sdk.runtimes.base import LoadedArtifact, RuntimeOptions
from samespace.sdk.runtimes.registry import open_runtime

__all__ = ["Aim", "HeldOut", "Judgement"]

#: Of the angle that the gate allows, so much may be spent on held-out pictures: the model has seen them in its training, and
#: the gate asks of pictures that it has not.
_HEADROOM = 0.75


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Pictures that judge candidates; none of them gave ranges.

    Attributes:
        tensors: ``(n, size, size, 3)`` uint8.
        reference: ``(n, dim)`` float32 unit-norm, by the fp32 torch model.
        gallery: ``(m, dim)`` float32 unit-norm, the cloud model's embeddings of all calibration pictures.
        own: ``(n,)`` int64, each picture's own row of the gallery, which its query does not see.
        labels: ``(m,)`` int64 of the gallery's rows, or None; then only agreement is judged.
    """

    tensors: npt.NDArray[np.uint8]
    reference: npt.NDArray[np.float32]
    gallery: npt.NDArray[np.float32]
    own: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None = None

    def judge(self, artifact: LoadedArtifact, threads: int = 0) -> Judgement:
        """Run a candidate in the first runtime that this machine has for it, and measure.

        One that gives what is no embedding is judged the worst there can be, and the judgement says why.
        """
        try:
            with open_runtime(artifact, options=RuntimeOptions(threads=threads)) as runtime:
                return self.judge_rows(runtime.run(self.tensors), artifact_bytes(artifact))
        except SamespaceError as error:
            return Judgement(len(self.tensors), artifact_bytes(artifact), -1.0, 0.0, None, str(error))

    def judge_rows(self, rows: npt.NDArray[np.float32], size: int = 0) -> Judgement:
        """Measure embeddings ``(n, dim)`` of the pictures.

        Raises:
            EmbeddingError: they are none.
        """
        recall = None
        if self.labels is not None and len(asking := self._asking()):
            recall = paired_bootstrap(self._found(rows, asking), self._found(self.reference, asking))
        return Judgement(
            n=len(rows),
            bytes=size,
            worst_cosine=worst_percentile(cosine(rows, self.reference), 1.0),
            overlap=float(neighbour_overlap(rows, self.reference, self.gallery, min(10, len(self.gallery))).mean()),
            recall=recall,
        )

    def _asking(self) -> npt.NDArray[np.int64]:
        """Pictures whose label another row of the gallery has."""
        assert self.labels is not None
        return np.flatnonzero(np.bincount(self.labels)[self.labels[self.own]] > 1)

    def _found(self, rows: npt.NDArray[np.float32], asking: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """1 where the nearest row of another picture has the query's label; of equal scores the wrong one counts."""
        assert self.labels is not None
        own = self.own[asking]
        scores = rows[asking] @ self.gallery.T
        scores[np.arange(len(own)), own] = -np.inf
        right = self.labels[own][:, None] == self.labels[None, :]
        right[np.arange(len(own)), own] = False
        best_right = np.where(right, scores, -np.inf).max(axis=1)
        best_wrong = np.where(right, -np.inf, scores).max(axis=1)
        return (best_right > best_wrong).astype(np.float64)


@dataclass(frozen=True)
class Judgement:
    """What a candidate costs.

    Attributes:
        n: pictures.
        bytes: size of the artifact.
        worst_cosine: first percentile of the cosines to the fp32 torch model.
        overlap: mean share of the ten nearest gallery rows that it has in common with the torch model.
        recall: ``M(candidate, g) - M(model, g)``, recall@1 query by query; None where no labels are.
        refused: why it gives no embeddings; empty when it does.
    """

    n: int
    bytes: int
    worst_cosine: float
    overlap: float
    recall: Estimate | None = None
    refused: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Aim:
    """What is asked of a candidate on held-out pictures.

    Attributes:
        worst_cosine: the least.
        recall_margin: how far recall@1 may fall.
    """

    worst_cosine: float
    recall_margin: float

    @classmethod
    def of(cls, gate: Gate) -> Self:
        """A little stricter than the gate in the cosine."""
        return cls(1 - _HEADROOM * (1 - gate.worst_cosine), gate.recall_margin)

    def spent(self, judgement: Judgement) -> float:
        """The larger share of the two allowances that a candidate uses up; more than 1 misses.

        Of the loss of recall only what lies beyond one standard error counts: a query that falls for no reason is no cost.
        """
        shares = [(1 - judgement.worst_cosine) / max(1 - self.worst_cosine, 1e-9)]
        if judgement.recall is not None:
            # The bootstrap's interval of 95 % is about two standard errors wide on either side.
            error = (judgement.recall.high - judgement.recall.low) / 4
            shares.append((-judgement.recall.value - error) / max(self.recall_margin, 1e-9))
        return max(shares)

    def met(self, judgement: Judgement) -> bool:
        return not judgement.refused and self.spent(judgement) <= 1


def artifact_bytes(artifact: LoadedArtifact) -> int:
    """Bytes of all its files."""
    return sum(len(data) for data in artifact.files.values())
