"""The probe images that are worth a look: what the model should have seen, what the device saw, and what each found."""

from __future__ import annotations

import base64
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.report import Case, EmbeddingLayer, Found, PictureKind, RetrievalLayer, Settings, TensorLayer
from samespace.sdk.check.service import ServiceGallery
from samespace.sdk.probes import ProbeSet

__all__ = ["worst_cases"]

#: Edge of a picture in pixels, and how many items are listed as found.
_EDGE, _FOUND = 96, 5
#: Below this edge a picture is kept without loss: JPEG needs about as much for so few pixels, and blurs them.
_SMALL = 48


def worst_cases(
    tensors: npt.NDArray[np.generic] | None,
    embeddings: npt.NDArray[np.float32] | None,
    layers: tuple[TensorLayer | None, EmbeddingLayer | None, RetrievalLayer | None],
    probes: ProbeSet,
    gallery: GallerySample | ServiceGallery,
    settings: Settings,
) -> tuple[Case, ...]:
    """The worst of each layer, and the queries that the device lost; each probe image once.

    Args:
        tensors: the device's, if it shows them.
        embeddings: ``(n, d)`` unit-norm, the device's, if it has usable ones.
        layers: as measured.
        probes: images and references.
        gallery: that was searched.
        settings: how many of each kind.
    """
    reasons = _reasons(layers, max(1, (settings.worst_cases + 1) // 2))
    chosen = list(reasons)
    found: list[tuple[tuple[Found, ...], tuple[Found, ...]]] = [((), ())] * len(chosen)
    if embeddings is not None and chosen:
        sides = (_search(rows[chosen], gallery) for rows in (probes.reference, embeddings))
        found = list(zip(*sides, strict=True))
    _, embedding, retrieval = layers
    return tuple(
        Case(
            probe=probe,
            why=tuple(reasons[probe]),
            label=None if probes.probe_labels is None else probes.probe_labels[probe],
            cosine=None if embedding is None else embedding.cosine[probe],
            overlap=None if retrieval is None else retrieval.overlaps[probe],
            reference=reference,
            device=device,
            pictures=_pictures(probe, probes, tensors),
        )
        for probe, (reference, device) in zip(chosen, found, strict=True)
    )


def _reasons(
    layers: tuple[TensorLayer | None, EmbeddingLayer | None, RetrievalLayer | None], count: int
) -> dict[int, list[str]]:
    tensor, embedding, retrieval = layers
    reasons: dict[int, list[str]] = {}

    def add(probe: int, why: str) -> None:
        reasons.setdefault(probe, []).append(why)

    if retrieval is not None and retrieval.hits is not None:
        hits = retrieval.hits
        lost = [p for p, old, new in zip(hits.probe, hits.reference, hits.device, strict=True) if old and not new]
        for probe in lost[:count]:
            add(probe, "lost: right by the reference, wrong on the device")
    for case in tensor.worst[:count] if tensor is not None else ():
        add(case.probe, f"tensor off by up to {case.value:.0f} levels")
    for case in embedding.worst[:count] if embedding is not None else ():
        add(case.probe, "among the lowest cosines")
    for case in retrieval.worst[:count] if retrieval is not None else ():
        if case.value < 1:
            add(case.probe, "keeps the fewest neighbours")
    return reasons


def _search(queries: npt.NDArray[np.float32], gallery: GallerySample | ServiceGallery) -> list[tuple[Found, ...]]:
    if isinstance(gallery, ServiceGallery):
        return [
            tuple(Found(item=item, label=label, score=score) for item, label, score in row)
            for row in gallery.nearest(queries, _FOUND)
        ]
    scores = queries @ gallery.embeddings.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :_FOUND]
    return [
        tuple(
            Found(item=str(at), label=None if gallery.labels is None else gallery.labels[at], score=float(line[at]))
            for at in row
        )
        for row, line in zip(order, scores, strict=True)
    ]


def _pictures(probe: int, probes: ProbeSet, tensors: npt.NDArray[np.generic] | None) -> dict[PictureKind, str]:
    golden = probes.golden[probe]
    pictures: dict[PictureKind, str] = {"golden": _picture(golden)}
    if tensors is None or tensors.shape != probes.golden.shape:
        return pictures
    mine = np.nan_to_num(tensors[probe].astype(np.float64))
    difference = np.abs(mine - golden)
    if difference.any():
        pictures["device"] = _picture(mine.clip(0, 255).astype(np.uint8))
        # The largest difference is white: one of two levels is seen, too.
        pictures["difference"] = _picture((difference * (255 / difference.max())).clip(0, 255).astype(np.uint8))
    return pictures


def _picture(pixels: npt.NDArray[np.uint8]) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_EDGE, _EDGE))
    buffer = io.BytesIO()
    kind = "png" if max(image.size) <= _SMALL else "jpeg"
    image.save(buffer, kind, **({} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
