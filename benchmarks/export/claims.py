"""The parts of the export benchmark: each measures, and returns its records. A record's id begins with its part's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from latency import interleaved
from prepare import Subject, exported
from refusals import bomb, mutants, saturation

from samespace.export.targets import DEFAULT_ARTIFACTS, TARGETS
from samespace.sdk.check.gate import Gate
from samespace.sdk.runtimes.registry import runtimes_for

__all__ = ["PARTS"]

Record = dict[str, Any]

_ROUNDS = {"full": 300, "small": 30}
#: Parameters from which on int8 must be 3.2 times smaller.
_LARGE = 2_000_000
_SMALLER, _FASTER, _MINUTES, _STRETCH = 3.2, 1.1, 4.0, 2.0
#: Weights of 4 bits may miss their limit.
_MAY_FAIL = "palette4"


def cosine(subject: Subject) -> list[Record]:
    """Worst-1 % cosine to torch fp32 on real images, each precision's worst over formats and runtimes."""
    found = []
    for precision in dict.fromkeys(entry["artifact"].split("-", 1)[1] for entry in subject.agreements):
        entries = [entry for entry in subject.agreements if entry["artifact"].split("-", 1)[1] == precision]
        limit = Gate.default(precision).worst_cosine
        measured = {_name(entry): entry["worst_cosine"] for entry in entries}
        below = [name for name, value in measured.items() if not value >= limit]
        may_fail = precision == _MAY_FAIL
        found.append(
            {
                "id": f"cosine-{precision}",
                "claim": f"worst-1 % cosine to torch fp32, {precision}"
                + (", which may fail: the export then says so and writes nothing unless forced" if may_fail else ""),
                "bar": "reported" if may_fail else f">= {limit:g} in all formats",
                "measured": measured,
                "ci95": None,
                "n": entries[0]["n"],
                "holds": may_fail or not below,
                "reason": "" if may_fail or not below else f"below: {', '.join(below)}",
            }
        )
    return found


def recall(subject: Subject) -> list[Record]:
    """M(q_int8, g) against M(q, g), and the ten nearest that are kept."""
    entries = [entry for entry in subject.agreements if entry["artifact"].endswith("-int8") and entry["recall"]]
    if not entries:
        return []
    points = {_name(entry): 100 * entry["recall"]["difference"] for entry in entries}
    worst = min(entries, key=lambda entry: entry["recall"]["difference"])
    holds = min(points.values()) >= -1
    kept = {_name(entry): 100 * entry["overlap"] for entry in subject.agreements if entry["overlap"] is not None}
    return [
        {
            "id": "recall-int8",
            "claim": "M(q_int8, g) - M(q, g) of static int8, in points of R@1, on the bundle's probes",
            "bar": ">= -1",
            "measured": points,
            "ci95": (100 * worst["recall"]["low"], 100 * worst["recall"]["high"]),
            "n": worst["recall"]["n"],
            "holds": holds,
            "reason": "" if holds else f"{_name(worst)} loses more",
        },
        {
            "id": "recall-overlap",
            "claim": "share of the ten nearest in the cloud's gallery that an artifact has in common with torch fp32, in %",
            "bar": "reported",
            "measured": kept,
            "ci95": None,
            "n": worst["n"],
            "holds": True,
        },
    ]


def size(subject: Subject) -> list[Record]:
    """How much smaller int8 is than fp32, at 2 M parameters and more."""
    sizes = {entry["artifact"]: entry["bytes"] for entry in subject.agreements}
    ratios = {
        name: sizes[f"{name.removesuffix('-int8')}-fp32"] / count
        for name, count in sizes.items()
        if name.endswith("-int8") and f"{name.removesuffix('-int8')}-fp32" in sizes
    }
    if not ratios:
        return []
    large = subject.parameters >= _LARGE
    short = [name for name, ratio in ratios.items() if ratio < _SMALLER]
    reason = "" if not short else f"{', '.join(short)} smaller by less"
    return [
        {
            "id": "size-int8",
            "claim": f"int8 is smaller than fp32, by a factor of; {subject.parameters / 1e6:.2f} M parameters",
            "bar": f">= {_SMALLER} at >= 2 M parameters",
            "measured": ratios,
            "ci95": None,
            "n": len(ratios),
            "holds": large and not short,
            "reason": reason if large else "this model has fewer parameters than the bar is about",
        }
    ]


def speed(subject: Subject) -> list[Record]:
    """How much faster int8 is than fp32, one thread, batch 1, interleaved."""
    bundle = subject.every[0]
    names = [spec for spec in bundle.artifacts if spec.precision in ("fp32", "fp16", "int8", "int8-dynamic")]
    keys = {(spec.name, runtime): bundle.artifact(spec.path) for spec in names for runtime in runtimes_for(spec.format)}
    # An evaluator's time says nothing of a device.
    keys = {key: artifact for key, artifact in keys.items() if key[1] != "coreml_reference"}
    found = []
    for runtime in dict.fromkeys(name for _, name in keys):
        mine = {key: artifact for key, artifact in keys.items() if key[1] == runtime}
        base = next((key for key in mine if key[0].endswith("-fp32")), None)
        if base is None or len(mine) < 2:
            continue
        times = interleaved(mine, subject.probes.golden, base, _ROUNDS[subject.place.size])
        faster = {key[0]: 1 / latency.ratio for key, latency in times.items() if key != base}
        judged = runtime == "onnx" and "onnx-int8" in faster
        latency = times.get(("onnx-int8", "onnx"))
        holds = not judged or faster["onnx-int8"] >= _FASTER
        if judged:
            faster = {"onnx-int8": faster.pop("onnx-int8"), **faster}
        found.append(
            {
                "id": f"speed-{runtime}",
                "claim": f"times as fast as fp32 in {runtime} ({times[base].milliseconds:.2f} ms), one thread, batch 1",
                "bar": f"int8 >= {_FASTER}" if judged else "reported",
                "measured": faster,
                "ci95": (1 / latency.high, 1 / latency.low) if judged and latency else None,
                "n": _ROUNDS[subject.place.size],
                "holds": holds,
                "reason": "" if holds else "the integer kernels gain less on this machine",
            }
        )
    return found


def time(subject: Subject) -> list[Record]:
    """How long the export of one model takes: the defaults of all targets."""
    targets = dict.fromkeys(pair for pairs in (DEFAULT_ARTIFACTS, *TARGETS.values()) for pair in pairs)
    found = []
    for name, pairs in (("defaults", DEFAULT_ARTIFACTS), ("targets", tuple(targets))):
        artifacts = [f"{format}-{precision}" for format, precision in pairs]
        minutes = exported(subject.place, subject.run, subject.model, artifacts, name)[2] / 60
        what = (
            "what is exported unless told otherwise" if name == "defaults" else "all defaults: of android, ios, web, linux-arm"
        )
        found.append(
            {
                "id": f"time-{name}",
                "claim": f"minutes to export one model as {what} ({len(artifacts)} artifacts), verified",
                "bar": f"<= {_MINUTES:g} on 2 cores (stretch {_STRETCH:g})",
                "measured": minutes,
                "ci95": None,
                "n": 1,
                "holds": minutes <= _MINUTES,
                "reason": "" if minutes <= _MINUTES else "slower",
            }
        )
    return found


def _name(entry: dict[str, Any]) -> str:
    """Artifact and runtime, without its version."""
    return f"{entry['artifact']} in {entry['runtime'].split(' ')[0]}"


PARTS: dict[str, Callable[[Subject], list[Record]]] = {
    "cosine": cosine,
    "recall": recall,
    "size": size,
    "speed": speed,
    "time": time,
    "mutants": mutants,
    "bomb": bomb,
    "saturation": saturation,
}
