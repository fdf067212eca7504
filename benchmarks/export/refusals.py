"""Parts of the export benchmark about what is refused: damaged artifacts, bombs, int8 that saturates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import bomb as bombs
import numpy as np
from mutants import OURS, survey
from prepare import Subject

from samespace.export.saturation import measure_saturation, refuse_saturation
from samespace.sdk.errors import ExportError
from samespace.sdk.runtimes.base import LoadedArtifact
from samespace.sdk.runtimes.registry import runtimes_for

__all__ = ["bomb", "mutants", "saturation"]

_MUTANTS = {"full": 500, "small": 24}
#: How far the peak of resident memory may rise while a bomb is refused.
_BOMB_BYTES = 16 << 20


def mutants(subject: Subject) -> list[dict[str, Any]]:
    """Damaged artifacts of each format, parsed in a limited child process."""
    bundle, count = subject.every[0], _MUTANTS[subject.place.size]
    images, found = subject.probes.golden[:1], []
    for format in dict.fromkeys(spec.format for spec in bundle.artifacts):
        spec = min((spec for spec in bundle.artifacts if spec.format == format), key=lambda spec: spec.precision != "fp32")
        for runtime in runtimes_for(format):
            counts = survey(bundle.artifact(spec.path), runtime, images, count, workers=subject.workers)
            ours = sum(counts[name] for name in OURS)
            found.append(
                {
                    "id": f"mutants-{runtime}",
                    "claim": f"the parent survives mutants of {spec.name} in {runtime}, and sees our error or an embedding",
                    "bar": "all",
                    "measured": {"ours": ours, **{name: number for name, number in counts.items() if number}},
                    "ci95": None,
                    "n": count,
                    "holds": ours == count,
                    "reason": "" if ours == count else f"{count - ours} raised something else",
                }
            )
    return found


def bomb(subject: Subject) -> list[dict[str, Any]]:
    """Pictures of a few hundred kB that would take hundreds of MB when decoded."""
    measured, refused = {}, True
    for width, channels in ((7100, 3), (12000, 3)):
        picture = bombs.png(width, width, channels)
        why, grown = bombs.memory_of(picture)
        refused = refused and "more than" in why
        measured[f"{width * width // 10**6} megapixels in {len(picture) // 1000} kB: MB"] = grown / 1e6
    holds = refused and max(measured.values()) * 1e6 <= _BOMB_BYTES
    accepted, grown = bombs.memory_of(bombs.png(7000, 7000, 3))
    return [
        {
            "id": "bomb-png",
            "claim": "a PNG bomb is refused before it is decoded; rise of the process's peak memory",
            "bar": f"refused, <= {_BOMB_BYTES / 1e6:.0f} MB",
            "measured": measured,
            "ci95": None,
            "n": len(measured),
            "holds": holds,
            "reason": "" if holds else "decoded" if not refused else "takes more memory",
        },
        {
            "id": "bomb-largest",
            "claim": "what the largest picture that is accepted takes (49 megapixels), MB",
            "bar": "reported",
            "measured": grown / 1e6,
            "ci95": None,
            "n": 1,
            "holds": not accepted,
            "reason": accepted,
        },
    ]


def saturation(subject: Subject) -> list[dict[str, Any]]:
    """int8 recipes that saturate on x86 without VNNI are refused, ours is not."""
    import onnx

    from samespace.export.formats.onnx_int8 import Scheme, to_int8
    from samespace.export.options import ExportOptions

    fp32 = subject.every[0].artifact("onnx-fp32")
    model = onnx.load_model_from_string(fp32.single_file)
    golden = subject.probes.golden
    calibration = subject.run.calibration
    pictures = golden if calibration is None else calibration.prepared(subject.model.record.preprocess)[:64]
    found = []
    for name, scheme, refusable in (
        ("U8S8", Scheme("uint8", reduce_range=False), True),
        ("S8S8", Scheme("int8", reduce_range=False), True),
        ("ours", Scheme(), False),
    ):
        data = to_int8(model, ExportOptions(calibration=pictures), scheme).SerializeToString()
        spec = fp32.spec.model_copy(update={"precision": "int8", "path": f"{name}.onnx"})
        refused, measured = _saturates(replace(fp32, spec=spec, files={"": data}), golden)
        holds = bool(refused) == refusable and ("saturation" in refused or not refusable)
        found.append(
            {
                "id": f"saturation-{name.lower()}",
                "claim": f"{name} int8 is refused for saturation" if refusable else "our U8S8 recipe with 7-bit weights is not",
                "bar": "refused with the reason" if refusable else "not refused",
                "measured": measured,
                "ci95": None,
                "n": len(golden),
                "holds": holds,
                "reason": "" if holds else refused or "within the gate: this model's sums do not saturate enough to matter",
            }
        )
    return found


def _saturates(artifact: LoadedArtifact, golden: np.ndarray) -> tuple[str, dict[str, float]]:
    """Why it was refused, empty when it was not; and the worst-1 % cosines between optimised and as written."""
    found = measure_saturation(artifact, golden)
    measured = {"here": found.here, "without VNNI": found.without_vnni}
    try:
        refuse_saturation(artifact, golden)
    except ExportError as error:
        return str(error), measured
    return "", measured
