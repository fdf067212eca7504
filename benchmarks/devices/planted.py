"""Known mistakes, made on a device: it is fed with pictures that already are what the mistake would have made of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
from PIL import Image

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.diagnosis import diagnose
from samespace.sdk.check.diagnosis.catalogue import cause_of
from samespace.sdk.check.diagnosis.faults import Recipe, faulty_tensors, faulty_values
from samespace.sdk.devices import open_device
from samespace.sdk.errors import SamespaceError
from samespace.sdk.preprocess import Preprocess
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import RuntimeOptions

__all__ = ["planted_on"]


def planted_on(device: str, bundle: Bundle, artifacts: Sequence[str], most: int = 0) -> list[dict[str, Any]]:
    """Make each mistake that the bundle knows by itself on a device, and ask the diagnosis.

    The device gets a picture of the model's own size, which its preprocessing leaves as it is: so it runs on just the tensor
    that an app with the mistake would have made. Mistakes that bytes cannot show (values of 0-1) stay out.

    Args:
        device: its name.
        bundle: with fingerprints.
        artifacts: names; those that the bundle or the device has not are left out.
        most: mistakes; 0 is all.

    Returns:
        ``{"artifact", "fault", "cause", "named", "found"}`` for each artifact and mistake that makes a difference; ``found``
        says whether the cause was named first.
    """
    probes, preprocess = ProbeSet.from_bundle(bundle), bundle.manifest.model.preprocess
    faults = [name for name in sorted(probes.mistakes) if "+" not in name and _shown(preprocess, probes, name)]
    rows = []
    with closing(open_device(device)) as running:
        for spec in bundle.artifacts:
            runtime = next(iter(running.runtimes(spec.format)), None)
            if spec.name not in artifacts or runtime is None:
                continue
            for fault in faults[: most or None]:
                images = [_png(tensor) for tensor in _tensors(preprocess, probes, fault)]
                row = {"artifact": spec.name, "fault": fault, "cause": cause_of(fault), "named": [], "found": False}
                try:
                    run = running.embed(bundle, spec.path, runtime, images, RuntimeOptions(threads=1))
                    if run.embeddings is not None:
                        row["named"] = [cause.name for cause in diagnose(bundle, spec.name, run.embeddings).causes]
                except SamespaceError as error:
                    row["refused"] = str(error)
                row["found"] = row["named"][:1] == [row["cause"]]
                rows.append(row)
                print(f"planted {fault} in {spec.name} on {device}: {', '.join(row['named']) or 'nothing'}", flush=True)
    return rows


def _tensors(preprocess: Preprocess, probes: ProbeSet, fault: str) -> np.ndarray:
    recipe = Recipe.of(fault)
    tensors = np.stack([faulty_tensors(preprocess, image, [recipe])[0] for image in probes.images])
    return np.rint(faulty_values(preprocess, tensors, recipe.values))


def _shown(preprocess: Preprocess, probes: ProbeSet, fault: str) -> bool:
    """Whether bytes can show the mistake, and it changes anything here."""
    try:
        tensors = _tensors(preprocess, probes, fault)
    except (ValueError, KeyError, SamespaceError):
        return False  # a mistake behind the tensors: the norm, another revision
    values = Recipe.of(fault).values
    return values != "range_01" and tensors.min() >= 0 and tensors.max() <= 255 and bool((tensors != probes.golden).any())


def _png(tensor: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tensor.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
