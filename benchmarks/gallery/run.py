"""The bars of the gallery: search through service and client, many clients, recall, adding, growth, and peers.

python benchmarks/gallery/run.py                              10 k, 100 k and 1 M vectors, peers with 100 k: hours
python benchmarks/gallery/run.py --size small                 10 k, 30 k and 100 k, peers with 10 k
python benchmarks/gallery/run.py --only point-10000,growth    some parts; the others' figures stay
python benchmarks/gallery/run.py --list                       the parts, and which are done
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import growth
import numpy as np
from dataset import ROOT, Dataset, open_world, seeds_of
from peers import ENGINES, measure_ours, measure_peer
from point import measure_point

from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine, measured_text, write_ledger
from samespace.sdk.files import atomic_write
from samespace.sdk.metrics.bootstrap import bootstrap_mean

__all__ = ["main", "records_of"]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    points: tuple[int, ...]
    peers: int
    peer_limit: float
    effort: dict[str, int]


SIZES = {
    "ci": Size((300, 600, 1200), 600, 60, {"queries": 20, "seconds": 1, "rounds": 1, "added": 40}),
    "small": Size((10_000, 30_000, 100_000), 10_000, 300, {"queries": 300, "seconds": 5, "rounds": 5, "added": 1000}),
    "full": Size((10_000, 100_000, 1_000_000), 100_000, 1200, {"queries": 500, "seconds": 8, "rounds": 5, "added": 2000}),
}


class Work:
    """Where figures are kept between runs: one JSON file a part."""

    def __init__(self, folder: Path, size: Size, name: str) -> None:
        self.folder, self.size, self.name = folder, size, name
        self.parts: dict[str, Callable[[], dict[str, Any]]] = {
            **{f"point-{n}": lambda n=n: self._point(n) for n in size.points},
            **{f"peer-{engine}": lambda engine=engine: self._peer(engine) for engine in ("samespace", *ENGINES)},
        }

    @cached_property
    def world(self) -> Any:
        return open_world(self.folder / "world")

    @cached_property
    def data(self) -> Dataset:
        return Dataset(seeds_of(self.world, self.name))

    def result(self, part: str) -> dict[str, Any] | None:
        """What a part measured, if it was run."""
        path = self.folder / f"{part}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, part: str) -> None:
        atomic_write(self.folder / f"{part}.json", json.dumps(self.parts[part]()))

    def _point(self, n: int) -> dict[str, Any]:
        return measure_point(self.folder / f"{n}", self.world, self.data, n, self.size.effort)

    def _peer(self, engine: str) -> dict[str, Any]:
        queries = min(200, 10 * self.size.effort["queries"])
        if engine == "samespace":
            return measure_ours(self.folder / "ours", self.data, self.size.peers, queries)
        return measure_peer(engine, self.folder / "peers", self.data, self.size.peers, queries, self.size.peer_limit)


def records_of(results: dict[str, dict[str, Any]], common: dict[str, Any]) -> list[EvidenceRecord]:
    """The ledger's records of what was measured so far; the bars are those of the largest point."""
    points = sorted((r for part, r in results.items() if part.startswith("point-")), key=lambda r: r["n"])
    records = [record for point in points for record in _point_records(point, common)]
    if points:
        followed = [growth.growth_of(point) for point in points]
        checked = growth.check(followed)
        worst = max((c["error"] for c in checked.values()), default=0.0)
        off = [
            f"{name} is {c['measured'] / c['predicted']:.1f} times what it says"
            for name, c in checked.items()
            if c["error"] > 0.25
        ]
        records.append(
            EvidenceRecord(
                id="gallery-growth",
                claim="time, memory and disk grow as " + "; ".join(f"{name}: {words}" for name, words in growth.MODELS.items())
                + "; fitted to the smaller points, relative error at the largest",
                bar="at most 0.25 each",
                measured={"worst_error": worst, "checked": checked, "points": followed},
                ci95=None,
                n=len(points),
                holds=bool(checked) and worst <= 0.25,
                reason="the model is too simple: " + "; ".join(off) if off else "" if checked else "fewer than three points",
                **common,
            )
        )  # fmt: skip
    for part, told in results.items():
        if part.startswith("peer-"):
            records.append(_peer_record(part.removeprefix("peer-"), told, common))
    return records


def _point_records(point: dict[str, Any], common: dict[str, Any]) -> list[EvidenceRecord]:
    n, made = point["n"], []

    def add(
        name: str, claim: str, bar: str, measured: dict[str, Any], ci: tuple[float, float] | None, m: int, holds: bool
    ) -> None:
        reason = "" if holds else "measured outside the bar"
        key = f"gallery-{name}-{n}"
        made.append(
            EvidenceRecord(
                id=key,
                claim=f"{claim}, {n} vectors",
                bar=bar,
                measured=measured,
                ci95=ci,
                n=m,
                holds=holds,
                reason=reason,
                **common,
            )
        )

    ours, bare, query = (np.asarray(point[f"{name}_ms"]) for name in ("service", "bare_route", "bare_query"))
    ratio, ci = _ratio(ours, bare, np.median)
    absolute = {
        "service_ms": float(np.median(ours)),
        "bare_route_ms": float(np.median(bare)),
        "bare_query_ms": float(np.median(query)),
    }
    add(
        "search",
        "p50 of a search through service and client, by a bare route's",
        "<= 1.25",
        {"ratio": ratio, **absolute},
        ci,
        len(ours),
        ratio <= 1.25,
    )
    ours, bare = np.asarray(point["service_rate"]), np.asarray(point["bare_route_rate"])
    ratio, ci = _ratio(ours, bare, np.mean)
    measured = {"ratio": ratio, "service_per_s": float(ours.mean()), "bare_route_per_s": float(bare.mean())}
    add("throughput", "searches a second of 16 clients, by a bare route's", ">= 0.8", measured, ci, len(ours), ratio >= 0.8)
    for name, words in (
        ("recall", "recall@10 through service and client"),
        ("filtered_tenth_recall", "the same with a filter that one item in ten passes"),
        ("filtered_hundredth_recall", "the same with a filter that one item in a hundred passes"),
    ):
        mean = bootstrap_mean(point[name])
        measured = {"recall": mean.value}
        if name == "recall":
            measured["bare_query_recall"] = float(np.mean(point["bare_recall"]))
        else:
            measured["ms"] = point[name.replace("_recall", "_ms")]
        add(name.replace("_", "-"), words, ">= 0.98", measured, (mean.low, mean.high), mean.n, mean.value >= 0.98)
    ours, bare = np.asarray(point["service_added_rate"]), np.asarray(point["bare_added_rate"])
    ratio, ci = _ratio(ours, bare, np.mean)
    measured = {"ratio": ratio, "service_per_s": float(ours.mean()), "bare_per_s": float(bare.mean())}
    add(
        "adding",
        "vectors a second added through service and client, by a bare COPY and merge's into the same table",
        ">= 0.8",
        measured,
        ci,
        len(ours),
        ratio >= 0.8,
    )
    return made


def _ratio(ours: np.ndarray, theirs: np.ndarray, of: Callable[..., Any]) -> tuple[float, tuple[float, float]]:
    """Of two statistics, with the 95 % interval of a bootstrap over the pairs."""
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(ours), (2000, len(ours)))
    ratios = of(ours[chosen], axis=1) / of(theirs[chosen], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(of(ours) / of(theirs)), (float(low), float(high))


def _peer_record(engine: str, told: dict[str, Any], common: dict[str, Any]) -> EvidenceRecord:
    reason = told.get("error", "")
    return EvidenceRecord(
        id=f"gallery-peer-{engine}",
        claim=f"{engine}: latency, recall, and vectors acknowledged before and there after kill -9",
        bar="reported",
        measured=told,
        ci95=None,
        n=told.get("queries", 0),
        holds=not reason,
        reason=reason,
        **common,
    )


def main() -> int:
    """0, whatever the claims say; 2: a wrong argument."""
    wanted = _arguments()
    folder = (wanted.output or ROOT / "build" / "gallery" / wanted.size).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(folder, SIZES[wanted.size], wanted.size)
    if wanted.list:
        print("\n".join(f"{part:20} {'done' if work.result(part) else ''}" for part in [*work.parts, "growth"]))
        return 0
    only = wanted.only.split(",") if wanted.only else [part for part in work.parts if not work.result(part)]
    if unknown := sorted(set(only) - {*work.parts, "growth"}):
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(work.parts)}, growth", file=sys.stderr)
        return 2
    target = (ROOT / "benchmarks" / "results" if wanted.size == "full" else folder) / "gallery.json"
    with tempfile.TemporaryDirectory(prefix="samespace-bench-") as configuration:
        # A trust store of its own: the toy's key is not for the user's.
        os.environ["SAMESPACE_CONFIG_DIR"] = configuration
        for part in [*only, ""]:
            if part in work.parts:
                work.run(part)
            # After each part: whoever stops this keeps what is done.
            _report(work, target, wanted.size, show=not part)
    return 0


def _report(work: Work, target: Path, size: str, *, show: bool) -> None:
    results = {part: told for part in work.parts if (told := work.result(part))}
    command = "make bench NAME=gallery" + ("" if size == "full" else f" SIZE={size}")
    common = {"seeds": (7,), "device": describe_machine(), "command": command, "commit": commit_id(ROOT)}
    records = records_of(results, common)
    write_ledger(target, records)
    points = [growth.growth_of(told) for part, told in results.items() if part.startswith("point-")]
    if points:
        growth.plot(points, target.with_name("gallery_growth.svg"))
    if show:
        for record in records:
            print(f"{record.id}: {measured_text(record)[:200]}; bar {record.bar}: {'holds' if record.holds else record.reason}")
        print(growth.table(points) if points else "")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--only", default="", help="parts, comma-separated; default: those that are not done")
    parser.add_argument("--list", action="store_true", help="print the parts")
    parser.add_argument("--output", type=Path, help="folder to work in; default: build/gallery/SIZE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
