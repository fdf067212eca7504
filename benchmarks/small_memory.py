"""The least memory of a whole emulated system in which an artifact gives its embeddings, and how long such a system starts.

python benchmarks/small_memory.py                        trains and exports the model of benchmarks/export, if it is not there
python benchmarks/small_memory.py --bundle B.samespace   another bundle; its signer must be trusted

For each artifact and runtime it looks between computers with more and less memory, each started anew, for the smallest one
that does not refuse; what comes out must be the bits of the largest. Seconds of the start are this machine's, no device's.
"""

import argparse
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samespace.edge.devices.profile import DeviceProfile, QemuSystem, load_profile
from samespace.edge.devices.system import QemuSystemDevice, system_set
from samespace.sdk import Bundle, ProbeSet, RuntimeOptions
from samespace.sdk.devices import DeviceRun
from samespace.sdk.errors import ConfigError
from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine, write_ledger

ROOT = Path(__file__).parents[1]
JOBS = (
    *(("onnx-int8", "onnx"), ("onnx-fp16", "onnx"), ("onnx-fp32", "onnx")),
    *(("tflite-int8", "tflite"), ("tflite-fp32", "tflite"), ("tflite-fp32", "tflite_runtime")),
)
MEMORY_MB, MOST_MB, IMAGES = (96, 112, 128, 144, 160, 192, 224, 256), 512, 2
#: In which a TFLite and an ONNX artifact must run, by trials with a bare script and no client around the runtimes.
BAR_MB = 256


@dataclass(frozen=True)
class Least:
    """What was found of one artifact in one runtime.

    Attributes:
        artifact: its name.
        runtime: its name.
        memory_mb: of the smallest computer that ran it.
        peak: the most memory that the worker had in the largest one.
        refused: what the next smaller one said; empty where the smallest ran it.
        same: the smallest gave the bits of the largest.
    """

    artifact: str
    runtime: str
    memory_mb: int
    peak: str
    refused: str
    same: bool


def main() -> None:
    """Measure, print, and write the ledger."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    bundle = Bundle.open(parser.parse_args().bundle or _exported())
    system_set().install()
    starts: list[float] = []
    there = {artifact.name for artifact in bundle.artifacts}
    found = [least(bundle, *job, starts) for job in JOBS if job[0] in there]
    holds = bool(found) and all(one.same and one.memory_mb <= BAR_MB for one in found)
    common = {
        "seeds": (0,),
        "device": describe_machine(),
        "command": "make bench NAME=small_memory",
        "commit": commit_id(ROOT),
    }
    records = [
        EvidenceRecord(
            id="small-memory-least",
            claim="least MB of a whole emulated system in which samespace.sdk runs an artifact, with the bits of the largest",
            bar=f"each <= {BAR_MB} MB, same bits",
            measured={f"{one.artifact} in {one.runtime}": one.memory_mb for one in found},
            ci95=None,
            n=IMAGES,
            holds=holds,
            reason="" if holds else "an artifact needs more, or gave other bits: see what was refused",
            **common,
        ),
        EvidenceRecord(
            id="small-memory-start",
            claim="seconds until the worker in an emulated system answers, median; of this machine, no device's",
            bar="reported",
            measured=float(np.median(starts)),
            ci95=(float(np.min(starts)), float(np.max(starts))),
            n=len(starts),
            holds=True,
            **common,
        ),
    ]
    rows = "".join(f"| `{one.artifact}` | {one.runtime} | {one.memory_mb} MB | {one.peak} |\n" for one in found)
    table = "| artifact | runtime | least memory | most of it for the worker, with memory to spare |\n|---|---|---|---|\n"
    path = ROOT / "benchmarks" / "results" / "small_memory.json"
    write_ledger(
        path,
        records,
        model=bundle.manifest.model.name,
        refusals={f"{one.artifact} in {one.runtime}": one.refused for one in found},
        tables={"least": table + rows},
    )
    for record in records:
        print(f"{record.id}: {record.measured}, bar: {record.bar}, {'holds' if record.holds else record.reason}")


def least(bundle: Bundle, artifact: str, runtime: str, starts: list[float]) -> Least:
    """Look for the smallest computer, by halves."""
    largest = embed(bundle, artifact, runtime, MOST_MB, starts)
    if largest.embeddings is None:
        return Least(artifact, runtime, MOST_MB + 1, "", largest.refused, same=False)
    runs: dict[int, DeviceRun] = {MOST_MB: largest}
    sizes = [*MEMORY_MB, MOST_MB]
    low, high = 0, len(sizes) - 1
    while low < high:
        middle = (low + high) // 2
        runs[sizes[middle]] = embed(bundle, artifact, runtime, sizes[middle], starts)
        if runs[sizes[middle]].embeddings is None:
            low = middle + 1
        else:
            high = middle
    refused = runs[sizes[low - 1]].refused if low else ""
    smallest = runs[sizes[low]].embeddings
    assert smallest is not None
    same = np.array_equal(smallest, largest.embeddings)
    result = Least(artifact, runtime, sizes[low], largest.host.get("peak_memory", ""), refused, bool(same))
    print(result, flush=True)
    return result


def embed(bundle: Bundle, artifact: str, runtime: str, memory_mb: int, starts: list[float]) -> DeviceRun:
    """Embed the first probe images in a computer of that size that has done nothing before."""
    with closing(QemuSystemDevice(_profile(memory_mb))) as device:
        start = time.monotonic()
        try:
            device.start(bundle)
            starts.append(time.monotonic() - start)
        except ConfigError as error:  # too small for the worker: embed says the same, as a refusal
            print(error, file=sys.stderr)
        return device.embed(bundle, artifact, runtime, ProbeSet.from_bundle(bundle).images[:IMAGES], RuntimeOptions(threads=1))


def _profile(memory_mb: int) -> DeviceProfile:
    base = load_profile("a53-512mb")
    assert isinstance(base.runs, QemuSystem)
    runs = base.runs.model_copy(update={"memory_mb": memory_mb})
    return base.model_copy(update={"name": f"a53-{memory_mb}mb", "runs": runs})


def _exported() -> Path:
    sys.path.insert(0, str(ROOT / "benchmarks" / "export"))
    from prepare import Place, all_artifacts, choose_model, exported, trained

    place = Place(ROOT / "build" / "export" / "full", "full")
    os.environ["SAMESPACE_CONFIG_DIR"] = place.environment["SAMESPACE_CONFIG_DIR"]
    run = trained(place)
    return exported(place, run, choose_model(run, None), all_artifacts(), "every")[0].path


if __name__ == "__main__":
    main()
