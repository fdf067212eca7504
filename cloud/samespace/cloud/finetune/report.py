"""What an adaptation did: to one's own images, to the anchors, and to everybody who searches the gallery."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, ConfigDict

from samespace.cloud.evaluation import embed
from samespace.cloud.finetune.fit import Fitted
from samespace.cloud.finetune.release import adapted
from samespace.export.run import Run, RunModel
from samespace.sdk.metrics import Estimate, bootstrap_mean, negative_flips, recall_at_k, relative_negative_flip_rate

__all__ = ["FinetuneReport", "reported"]

Rows = npt.NDArray[np.float32]


class FinetuneReport(BaseModel):
    """Figures with their 95 % interval over pictures.

    Attributes:
        images, anchors: how many.
        towards: what the images' embeddings were to come near to.
        before, after, left_out: squared distance of the images' embeddings to that: of the released model, adapted (first
            order), and with each image judged by an adaptation that did not see it.
        bound, first_order, measured: what no anchor moves farther than to first order; how far one moves at most, to first
            order and by the network with changed weights. None without anchors; a bound also with a low rank.
        recall_before, recall_after: R@1 of the run's probes in the cloud's gallery.
        flips, relative_flips: share of probes that were found before and are not now; as a share of chance.
        probes, gallery: how many.
        steps: of conjugate gradients; 0: closed form.
        reproduce: command.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    model_id: str
    adaptation_id: str
    images: int
    anchors: int
    towards: str
    before: Estimate
    after: Estimate
    left_out: Estimate | None
    bound: float | None
    first_order: float | None
    measured: float | None
    recall_before: Estimate | None
    recall_after: Estimate | None
    flips: Estimate | None
    relative_flips: float | None
    probes: int
    gallery: int
    steps: int
    reproduce: str = ""

    def lines(self) -> list[str]:
        """As text."""
        text = [
            f"{self.images} images, towards {self.towards}: squared distance {self.before.text(1, 3)} -> "
            f"{self.after.text(1, 3)}",
        ]
        if self.left_out is not None:
            text.append(f"left out, each judged by an adaptation without it: {self.left_out.text(1, 3)}")
        if self.first_order is not None:
            bound = "nothing bounds it (low rank)" if self.bound is None else f"guaranteed at most {self.bound:.3g}"
            text.append(
                f"drift of {self.anchors} anchors, to first order: at most {self.first_order:.3g}, {bound}; "
                f"measured with changed weights: {self.measured:.3g}"
            )
        else:
            text.append("no anchors: nothing bounds the drift of what others search")
        if self.recall_before is not None and self.recall_after is not None and self.flips is not None:
            text.append(
                f"{self.probes} probes in the cloud's gallery of {self.gallery}: R@1 {self.recall_before.text()} -> "
                f"{self.recall_after.text()}, negative flips {self.flips.text()}"
            )
        return text


def reported(run: Run, model: RunModel, fitted: Fitted, targets: Rows, towards: str, reproduce: str = "") -> FinetuneReport:
    """Measure it on the run's probes and gallery, where they have labels.

    Args:
        targets: ``(n, d)`` unit rows that were wanted.
        towards: what they are.
    """

    def distance(rows: Rows) -> Estimate:
        return bootstrap_mean(np.square(rows - targets).sum(1))

    found: dict[str, Estimate | None] = dict.fromkeys(("recall_before", "recall_after", "flips"))
    relative = None
    if run.probe_labels and run.gallery_labels:
        pictures = _prepared(run.probe_images, model)
        hits = [_hits(run, model, pictures, fits) for fits in ([], [fitted.adaptation])]
        found = {
            "recall_before": bootstrap_mean(hits[0]),
            "recall_after": bootstrap_mean(hits[1]),
            "flips": bootstrap_mean(negative_flips(hits[0], hits[1])),
        }
        relative = relative_negative_flip_rate(hits[0], hits[1]) if hits[0].mean() > 0 and hits[1].mean() < 1 else None
    held = bool(len(fitted.drift))
    return FinetuneReport(
        model_id=model.record.model_id,
        adaptation_id=fitted.adaptation.adaptation_id,
        images=len(targets),
        anchors=len(fitted.drift),
        towards=towards,
        before=distance(fitted.before),
        after=distance(fitted.before + fitted.fitted),
        left_out=None if fitted.left_out is None else distance(fitted.before + fitted.left_out),
        bound=fitted.bound if np.isfinite(fitted.bound) else None,
        first_order=float(fitted.drift.max()) if held else None,
        measured=float(fitted.measured.max()) if held else None,
        relative_flips=relative,
        probes=len(run.probe_images),
        gallery=len(run.gallery),
        steps=fitted.steps,
        reproduce=reproduce,
        **found,
    )


def _hits(run: Run, model: RunModel, pictures: npt.NDArray[np.uint8], fits: Sequence) -> npt.NDArray[np.bool_]:
    queries = embed(adapted(model, fits), pictures, model.record.preprocess)
    assert run.probe_labels is not None
    assert run.gallery_labels is not None
    return recall_at_k(queries, run.gallery, list(run.probe_labels), list(run.gallery_labels), 1) > 0


def _prepared(images: Sequence[bytes], model: RunModel) -> npt.NDArray[np.uint8]:
    return model.record.preprocess.batch([Image.open(io.BytesIO(image)) for image in images])
