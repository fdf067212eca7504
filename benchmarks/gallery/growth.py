"""How time, memory and disk grow: a table, a plot, and a model, fitted to the smaller points and checked at the largest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MODELS", "fit", "growth_of", "plot", "predict", "table"]

#: What grows -> the regressor, in words: disk by the vector, time of a search and of an insert by the logarithm (HNSW).
MODELS = {
    "disk_bytes": "a + b n",
    "index_bytes": "a + b n",
    "search_ms": "a + b ln n",
    "added_ms": "a + b ln n",
    "service_rss_bytes": "a",
}
UNITS = {"disk_bytes": (1 << 20, "MiB"), "index_bytes": (1 << 20, "MiB"), "service_rss_bytes": (1 << 20, "MiB")}


def growth_of(point: dict[str, Any]) -> dict[str, float]:
    """What is followed, of one point."""
    return {
        "n": point["n"],
        "disk_bytes": point["table_bytes"] + point["index_bytes"],
        "index_bytes": point["index_bytes"],
        "search_ms": float(np.median(point["service_ms"])),
        "added_ms": 1e3 / float(np.median(point["service_added_rate"])),
        "service_rss_bytes": point["service_rss_bytes"],
    }


def fit(name: str, ns: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """``(a, b)`` of a model, by least squares of relative errors: the largest point must not decide alone."""
    columns = _columns(name, np.asarray(ns, float))
    weights = 1 / np.asarray(values, float)
    return np.linalg.lstsq(columns * weights[:, None], np.ones(len(weights)), rcond=None)[0]


def predict(name: str, coefficients: np.ndarray, n: float) -> float:
    """The model's value at ``n``."""
    return float((_columns(name, np.asarray([n], float)) @ coefficients)[0])


def check(points: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """For each model: what the smaller points predict of the largest, what was measured, and the relative error.

    Two points fix the models; at fewer than three nothing is checked.
    """
    ordered = sorted(points, key=lambda point: point["n"])
    if len(ordered) < 3:
        return {}
    *smaller, largest = ordered
    told = {}
    for name in MODELS:
        coefficients = fit(name, [p["n"] for p in smaller], [p[name] for p in smaller])
        predicted = predict(name, coefficients, largest["n"])
        told[name] = {"predicted": predicted, "measured": largest[name], "error": abs(predicted / largest[name] - 1)}
    return told


def table(points: Sequence[dict[str, float]]) -> str:
    """Markdown: a row for each number of vectors."""
    heads = ["vectors", *(name.replace("_bytes", " MiB").replace("_ms", " ms").replace("_", " ") for name in MODELS)]
    lines = [" | ".join(["", *heads, ""]).strip(), "|" + "---|" * len(heads)]
    for point in sorted(points, key=lambda point: point["n"]):
        cells = [f"{point[name] / UNITS.get(name, (1, ''))[0]:.3g}" for name in MODELS]
        lines.append(" | ".join(["", f"{point['n']:,}".replace(",", " "), *cells, ""]).strip())
    return "\n".join(lines) + "\n"


def plot(points: Sequence[dict[str, float]], target: Path) -> None:
    """An SVG: the measured points, and each model through all of them."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "samespace"
    from matplotlib import pyplot

    ordered = sorted(points, key=lambda point: point["n"])
    ns = [point["n"] for point in ordered]
    figure, axes = pyplot.subplots(1, len(MODELS), figsize=(3 * len(MODELS), 2.8), layout="constrained")
    for axis, (name, words) in zip(axes, MODELS.items(), strict=True):
        scale, unit = UNITS.get(name, (1, "ms"))
        values = [point[name] for point in ordered]
        axis.plot(ns, [value / scale for value in values], "o")
        if len(ordered) >= 2:
            along = np.geomspace(ns[0], ns[-1] * 10, 50)
            coefficients = fit(name, ns, values)
            axis.plot(along, [predict(name, coefficients, n) / scale for n in along], "--", label=words)
            axis.legend(fontsize=7)
        axis.set_xscale("log")
        if "n" in words.split():
            axis.set_yscale("log")
        axis.set_title(f"{name.rsplit('_', 1)[0].replace('_', ' ')}, {unit}", fontsize=9)
        axis.set_xlabel("vectors", fontsize=8)
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)


def _columns(name: str, ns: np.ndarray) -> np.ndarray:
    model, ones = MODELS[name], np.ones_like(ns)
    if model == "a":
        return ones[:, None]
    return np.stack([ones, np.log(ns) if "ln" in model else ns], axis=1)
