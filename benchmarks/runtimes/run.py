"""The same images through all artifacts of a model and all runtimes of this machine, in one run: one table.

python benchmarks/runtimes/run.py                        trains the model of benchmarks/export first, if it is not there
python benchmarks/runtimes/run.py --size small           a small training; no figures for documents
python benchmarks/runtimes/run.py --run RUN --model M    a model of a finished run
python benchmarks/runtimes/run.py --only onnx,tflite     some formats
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))

from latency import Latency, interleaved
from prepare import ROOT, Place, all_artifacts, choose_model, exported, trained

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.galleries import GallerySample
from samespace.sdk.check.gate import Gate
from samespace.sdk.check.report import Settings
from samespace.sdk.check.retrieval import measure_retrieval
from samespace.sdk.errors import SamespaceError
from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine, write_ledger
from samespace.sdk.metrics import cosine, worst_percentile
from samespace.sdk.probes import ProbeSet
from samespace.sdk.runtimes.base import RuntimeOptions
from samespace.sdk.runtimes.registry import open_runtime, runtime_class, runtimes_for

__all__ = ["measured", "records", "table"]

#: Evaluators that stand in for a device: what they take says nothing of it.
_NOT_TIMED = ("coreml_reference",)
_ROUNDS = {"full": 200, "small": 20, "ci": 10}


def main() -> None:
    """Measure, print, and write the ledger: of the full size to where documents quote it, else into the folder."""
    wanted = _arguments()
    folder = (wanted.output or ROOT / "build" / "export" / wanted.size).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(folder, wanted.size)
    run = trained(place, wanted.run)
    model = choose_model(run, wanted.model)
    names = [name for name in all_artifacts() if not wanted.only or name.split("-")[0] in wanted.only.split(",")]
    bundle, _, _ = exported(place, run, model, names, "every")
    rows = measured(bundle, _ROUNDS[wanted.size])
    text = table(rows)
    print(text)
    target = ROOT / "benchmarks" / "results" if wanted.size == "full" else folder
    found = records(rows, wanted.size)
    write_ledger(target / "runtimes.json", found, model=model.name, rows=rows, tables={"all": text})
    for record in found:
        print(f"{record.id}: {record.measured}, bar: {record.bar}, {'holds' if record.holds else record.reason}")


def measured(bundle: Bundle, rounds: int) -> list[dict[str, Any]]:
    """One row for each artifact and runtime, in the order of the bundle; ``refused`` where it does not run."""
    probes = ProbeSet.from_bundle(bundle)
    gallery, settings = GallerySample.from_probes(probes, bundle.manifest), Settings()
    pairs = [(spec, name) for spec in bundle.artifacts for name in runtimes_for(spec.format)]
    rows, embeddings = [], {}
    for spec, name in pairs:
        artifact = bundle.artifact(spec.path)
        row: dict[str, Any] = {
            "artifact": spec.name,
            "runtime": name,
            "version": runtime_class(name).version(),
            "precision": spec.precision,
            "bytes": sum(len(data) for data in artifact.files.values()),
            "limit": Gate.default(spec.precision).worst_cosine,
            "refused": "",
        }
        rows.append(row)
        try:
            with open_runtime(artifact, name, RuntimeOptions(threads=1)) as runtime:
                found = runtime.run(probes.golden)
            agreement = cosine(found, probes.reference)
        except SamespaceError as error:
            row["refused"] = str(error)
            continue
        layer = measure_retrieval(found, probes, gallery, settings)
        difference = layer.recall[1].difference if 1 in layer.recall else None
        row |= {
            "n": len(found),
            "worst_cosine": worst_percentile(agreement),
            "min_cosine": float(agreement.min()),
            "overlap": layer.overlap.value,
            "recall_difference": difference and asdict(difference),
        }
        embeddings[(spec.name, name)] = found
    for row in rows:
        row["other_runtimes"] = _cross(row, embeddings)
    timed = {key: bundle.artifact(key[0]) for key in embeddings if key[1] not in _NOT_TIMED}
    latencies: dict[tuple[str, str], Latency] = {}
    if (base := ("onnx-fp32", "onnx")) in timed:
        latencies = interleaved(timed, probes.golden, base, rounds)
    for row in rows:
        latency = latencies.get((row["artifact"], row["runtime"]))
        row["latency"] = latency and asdict(latency)
    return rows


def _cross(row: dict[str, Any], embeddings: dict[tuple[str, str], npt.NDArray[np.float32]]) -> float | None:
    """Lowest cosine between this runtime's embeddings and those of the first other runtime of the same artifact."""
    mine = embeddings.get((row["artifact"], row["runtime"]))
    others = [rows for (artifact, name), rows in embeddings.items() if artifact == row["artifact"] and name != row["runtime"]]
    if mine is None or not others:
        return None
    return float(cosine(mine, others[0]).min())


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    size = {row["artifact"]: row["bytes"] for row in rows}
    lines = [
        "| artifact | runtime | MB (fp32 / it) | worst-1 % cosine | top-10 kept | M(q, g) - torch's | time / onnx-fp32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        full = size.get(row["artifact"].split("-")[0] + "-fp32")
        space = f"{row['bytes'] / 1e6:.2f}" + (f" ({full / row['bytes']:.1f} x)" if full else "")
        if row["refused"]:
            lines.append(f"| {row['artifact']} | {row['runtime']} | {space} | refused: {row['refused'][:120]} | | | |")
            continue
        mark = "" if row["worst_cosine"] >= row["limit"] else f" **below {row['limit']:g}**"
        recall, latency = row["recall_difference"], row["latency"]
        points = (
            "-"
            if recall is None
            else "{value:+.1f} [{low:+.1f}, {high:+.1f}]".format(
                **{name: 100 * recall[name] + 0.0 for name in ("value", "low", "high")}
            )
        )
        time = "not timed" if latency is None else f"{latency['ratio']:.2f} [{latency['low']:.2f}, {latency['high']:.2f}]"
        kept = f"{100 * row['overlap']:.1f} %"
        cells = [row["artifact"], row["runtime"], space, f"{row['worst_cosine']:.6f}{mark}", kept, points, time]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def records(rows: list[dict[str, Any]], size: str) -> list[EvidenceRecord]:
    """What is claimed of the table."""
    command = "make bench NAME=runtimes" + ("" if size == "full" else f" SIZE={size}")
    common = {"seeds": (0,), "device": describe_machine(), "command": command, "commit": commit_id(ROOT)}
    # 4 bits may fail; the export says so and writes nothing unless forced.
    judged = [row for row in rows if row["precision"] != "palette4"]
    failed = [row for row in judged if row["refused"] or row["worst_cosine"] < row["limit"]]
    names = ", ".join(f"{row['artifact']} in {row['runtime']}" for row in failed)
    ran = [row for row in rows if not row["refused"]]
    crossed = [row for row in ran if row["other_runtimes"] is not None]
    worst = min((row["other_runtimes"] for row in crossed), default=1.0)
    found = [
        EvidenceRecord(
            id="runtimes-within-gates",
            claim="every artifact but 4-bit palettes is within the cosine gate of its precision, in every runtime",
            bar="all",
            measured={"within": len(judged) - len(failed), "of": len(judged)},
            ci95=None,
            n=max((row["n"] for row in ran), default=0),
            holds=not failed and bool(judged),
            reason=names if failed else "" if judged else "nothing ran",
            **common,
        )
    ]
    if crossed:
        found.append(
            EvidenceRecord(
                id="runtimes-agree",
                claim="two runtimes of one artifact give the same embeddings",
                bar="lowest cosine, reported",
                measured={min(crossed, key=lambda row: row["other_runtimes"])["artifact"]: worst},
                ci95=None,
                n=crossed[0]["n"],
                holds=True,
                **common,
            )
        )
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(_ROUNDS), default="full")
    parser.add_argument("--run", type=Path, help="a finished run; default: train one")
    parser.add_argument("--model", help="of the run; default: its largest edge model")
    parser.add_argument("--only", default="", help="formats, comma-separated; default: all that this machine runs")
    parser.add_argument("--output", type=Path, help="folder to work in; default: build/export/SIZE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
