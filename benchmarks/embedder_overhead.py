"""What the Embedder costs over the bare onnxruntime call it makes; and how long ``import samespace.sdk`` takes.

Both embed the same batch of 32 preprocessed images with the same session options, alternating in one run; the record is the
ratio of the medians, its interval a bootstrap over the pairs. Decoding and resizing are left out of both.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from samespace.edge.models.registry import build_model
from samespace.export import DeviceGraph
from samespace.export.formats import exporter_class
from samespace.export.formats.base import artifact_of
from samespace.sdk import Bundle, Embedder, ModelRecord, Preprocess, RuntimeOptions, SpaceRecord, write_bundle
from samespace.sdk.bundle import artifact_id
from samespace.sdk.evidence import EvidenceRecord, commit_id, describe_machine, write_ledger
from samespace.sdk.runtimes.registry import open_runtime

ROOT = Path(__file__).parents[1]
BATCH, ROUNDS, SEED, BAR = 32, 300, 0, 1.05


def main() -> None:
    """Measure, print, and write the ledger."""
    ratio, low, high = overhead()
    seconds = import_seconds()
    common = {
        "seeds": (SEED,),
        "device": describe_machine(),
        "command": "make bench NAME=embedder_overhead",
        "commit": commit_id(ROOT),
    }
    records = [
        EvidenceRecord(
            id="embedder-overhead",
            claim="Embedder.embed_tensors costs hardly more than the bare onnxruntime call, batch 32",
            bar=f"ratio of medians <= {BAR}",
            measured=ratio,
            ci95=(low, high),
            n=ROUNDS,
            holds=ratio <= BAR,
            reason="" if ratio <= BAR else "the wrapper costs more than 5 % of this small model's call",
            **common,
        ),
        EvidenceRecord(
            id="import-time",
            claim="import samespace.sdk loads no runtime; its time in seconds, median, file cache warm",
            bar="reported",
            measured=float(np.median(seconds)),
            ci95=(float(np.min(seconds)), float(np.max(seconds))),
            n=len(seconds),
            holds=True,
            **common,
        ),
    ]
    path = ROOT / "benchmarks" / "results" / "embedder_overhead.json"
    write_ledger(path, records)
    for record in records:
        print(f"{record.id}: {record.measured:.4f} {record.ci95}, bar: {record.bar}")


def overhead() -> tuple[float, float, float]:
    """Ratio of the medians, and its 95 % interval."""
    torch.manual_seed(SEED)
    arguments = {"dim": 128, "image_size": 32, "width": 24, "depth": 2, "stages": 2, "pooling": "map"}
    preprocess = Preprocess(size=32)
    exporter = exporter_class("onnx")
    conversion = exporter().convert(DeviceGraph(build_model("residual", arguments), preprocess), "fp32")
    record = ModelRecord(
        name="bench",
        role="cloud",
        family="residual",
        arguments=arguments,
        dim=128,
        preprocess=preprocess,
        weights_sha256="0" * 64,
    )
    space = SpaceRecord(name="bench", founder_model_id=record.model_id, dim=128)
    artifact = artifact_of(conversion, exporter, "fp32", artifact_id(conversion.files))
    images = np.random.default_rng(SEED).integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(conversion.files[""], options, providers=["CPUExecutionProvider"])
    ours, bare = np.empty(ROUNDS), np.empty(ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.samespace"
        write_bundle(path, model=record, space=space, artifacts=[(artifact, conversion.files)], files={}, gates={}, signer=None)
        # In this process, like the bare call: an unsigned bundle would run in a child.
        with trusted(path) as embedder:
            for index in range(-10, ROUNDS):
                start = time.perf_counter()
                session.run([artifact.output], {artifact.input.name: images})
                middle = time.perf_counter()
                embedder.embed_tensors(images)
                end = time.perf_counter()
                if index >= 0:
                    bare[index], ours[index] = middle - start, end - middle
    generator = np.random.default_rng(SEED)
    rows = generator.integers(0, ROUNDS, (2000, ROUNDS))
    ratios = np.median(ours[rows], axis=1) / np.median(bare[rows], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(ours) / np.median(bare)), float(low), float(high)


def trusted(path: Path) -> Embedder:
    """An Embedder on the bundle's artifact in this process, one thread."""
    bundle = Bundle.open(path, allow_unsigned=True)
    return Embedder(bundle.manifest, open_runtime(bundle.artifact("onnx"), "onnx", RuntimeOptions(threads=1, batch_size=BATCH)))


def import_seconds(rounds: int = 7) -> list[float]:
    """Seconds of the import in fresh processes, after one that warms the file cache."""
    script = "import time; start = time.perf_counter(); import samespace.sdk; print(time.perf_counter() - start)"
    runs = [
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in range(rounds + 1)
    ]
    return [float(run.stdout) for run in runs[1:]]


if __name__ == "__main__":
    main()
