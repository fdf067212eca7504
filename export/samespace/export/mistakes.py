"""What known mistakes of apps would give with a model: fingerprints that the check compares a failing device with.

Inputs are made in float where a mistake leaves the range of bytes, and embedded by the float model, so a fingerprint is what
the mistake does, exactly, and not what a conversion adds to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from samespace.export.torch_runtime import embed
from samespace.sdk.check.diagnosis.faults import Recipe, faulty_tensors, faulty_values
from samespace.sdk.check.diagnosis.hypotheses import PAIR_PROBES, SINGLE_PROBES, fingerprint_name, pairs, singles
from samespace.sdk.identity import ModelRecord
from samespace.sdk.preprocess import Preprocess

__all__ = ["fingerprints", "resized_without_antialias"]

#: Below this largest difference a mistake changes nothing here (no antialias on images that are small already, say).
_SAME = 1e-4
#: From this edge on embedding takes long: half of the probes must do for the pairs.
_LARGE = 128


def fingerprints(
    model: nn.Module, record: ModelRecord, images: tuple[bytes, ...], tensors: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[np.floating]]:
    """Embeddings of the first probe images under each mistake, alone and in pairs, that makes a difference to them.

    Args:
        model: the torch model, in evaluation mode.
        record: its record.
        images: encoded, n of them.
        tensors: ``(n, size, size, 3)`` uint8, the same images preprocessed rightly.

    Returns:
        name -> ``(m, dim)``: the first ``SINGLE_PROBES`` probes for a single mistake, ``PAIR_PROBES`` for ``a+b``; float16 of
        unit norm, but float32 of any norm for ``no_l2``.
    """
    alone = [(fault,) for fault in singles()]
    right = embed(model, record, tensors[:SINGLE_PROBES])
    made = _embedded(model, record, images[:SINGLE_PROBES], alone)
    effective = {faults[0] for faults, rows in made.items() if _differs(rows, right)}
    rows_of_pairs = PAIR_PROBES // 2 if record.preprocess.size > _LARGE else PAIR_PROBES
    together = [pair for pair in pairs() if effective.issuperset(pair)]
    paired = _embedded(model, record, images[:rows_of_pairs], together)
    kept = {fault: rows for fault, rows in made.items() if fault[0] in effective}
    # A second mistake that the first one hides cannot be seen in any embedding.
    kept |= {pair: rows for pair, rows in paired.items() if all(_differs(rows, made[fault,][: len(rows)]) for fault in pair)}
    found: dict[str, npt.NDArray[np.floating]] = {
        fingerprint_name(*faults): rows.astype(np.float16) for faults, rows in kept.items()
    }
    raw = embed(model, record, tensors[:SINGLE_PROBES], l2=False)
    return found | ({"no_l2": raw} if _differs(raw, right) else {})


def resized_without_antialias(preprocess: Preprocess, image: bytes) -> npt.NDArray[np.uint8]:
    """Preprocess with a bilinear resize that looks at four pixels whatever the reduction, as many image libraries do.

    Returns:
        ``(size, size, 3)`` uint8.
    """
    return faulty_tensors(preprocess, image, [Recipe.of("no_antialias")])[0]


def _embedded(
    model: nn.Module, record: ModelRecord, images: Sequence[bytes], combinations: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], npt.NDArray[np.float32]]:
    recipes = [Recipe.of(*faults) for faults in combinations]
    if not recipes:
        return {}
    # Image by image, so that each is decoded once.
    by_image = [faulty_tensors(record.preprocess, image, recipes) for image in images]
    made = {}
    for place, (faults, recipe) in enumerate(zip(combinations, recipes, strict=True)):
        tensors = np.stack([tensors[place] for tensors in by_image])
        made[faults] = embed(model, record, faulty_values(record.preprocess, tensors, recipe.values))
    return made


def _differs(rows: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> bool:
    return bool(np.abs(rows - right).max() > _SAME)
