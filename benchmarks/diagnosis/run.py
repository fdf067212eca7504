"""How often the diagnosis names the mistake: models x mistakes x probe sets x precisions, planted by other code than ours.

python benchmarks/diagnosis/run.py --size ci                    trains a tiny run first; a few minutes
python benchmarks/diagnosis/run.py --run RUN --models a,b       models of a finished run
python benchmarks/diagnosis/run.py --emulator qemu-x86_64       saturation, too: onnxruntime on an emulated x86 without VNNI
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import Case, healthy, model_faults, pairs, singles, strange
from figures import records
from runtimes import misread, saturated
from world import PRECISIONS, Subject, subjects

from samespace.export import Run, read_run
from samespace.export.torch_runtime import embed
from samespace.sdk.check.diagnosis import diagnose
from samespace.sdk.check.diagnosis.hypotheses import PAIR_PROBES
from samespace.sdk.evidence import measured_text, write_ledger

__all__ = ["Outcome", "judge", "main"]

ROOT = Path(__file__).parents[2]
SEED = 0


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        models: of the run.
        probes: of each probe set.
        pairs: of mistakes, of each subject and precision.
        draws: of probes for healthy artifacts, of each subject and precision.
    """

    models: int
    probes: int
    pairs: int
    draws: int


SIZES = {"ci": Size(1, 32, 4, 2), "small": Size(2, 48, 12, 8), "full": Size(3, 64, 40, 8)}


@dataclass(frozen=True)
class Outcome:
    """A case and what was said of it."""

    kind: str
    subject: str
    precision: str
    mode: str
    planted: str
    expected: tuple[str, ...]
    named: tuple[str, ...]

    @property
    def right(self) -> bool:
        """A single cause comes first, both of a pair are named, a healthy artifact is not accused."""
        if self.kind == "healthy":
            return not self.named
        if self.kind == "pair":
            return set(self.expected) <= set(self.named[:3])
        return bool(self.named) and self.named[0] in self.expected


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the ledger; 0 whatever the claims say."""
    wanted = _arguments(arguments)
    size, began = SIZES[wanted.size], time.monotonic()
    run = read_run(wanted.run or _trained(ROOT / "build" / "diagnosis" / "run"))
    others = [read_run(path) for path in wanted.others]
    names = wanted.models.split(",") if wanted.models else [name for name in run.models if name != run.cloud.name]
    chosen = [run.models[name] for name in names if run.models[name].record.role == "edge"][: size.models]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(run, chosen, Path(folder), size.probes):
            before = len(outcomes)
            outcomes += _measured(subject, [run, *others], size, Path(folder), wanted.emulator)
            new = outcomes[before:]
            print(
                f"{time.monotonic() - began:6.0f} s  {subject.name}: {sum(o.right for o in new)} of {len(new)} right",
                flush=True,
            )
            for outcome in new:
                if not outcome.right:
                    said = ", ".join(outcome.named) or "healthy"
                    print(f"          {outcome.precision} {outcome.mode} {outcome.planted}: {said}")
    found = records(outcomes, f"python benchmarks/diagnosis/run.py --size {wanted.size}", ROOT, SEED)
    wanted.output.parent.mkdir(parents=True, exist_ok=True)
    missed = [
        {"subject": o.subject, "precision": o.precision, "mode": o.mode, "planted": o.planted, "named": list(o.named)}
        for o in outcomes
        if not o.right
    ]
    write_ledger(wanted.output, found, size=wanted.size, models=[model.name for model in chosen], missed=missed)
    for record in found:
        print(
            f"{record.id:32} {measured_text(record)}  n={record.n}  bar: {record.bar}  {'holds' if record.holds else 'FAILS'}"
        )
    return 0


def judge(subject: Subject, case: Case, mode: str) -> Outcome:
    """Diagnose one case: ``live``, without running the artifact here (``stored``), or with the app's tensors (``tensors``)."""
    tensors = case.tensors if mode == "tensors" else None
    diagnosis = diagnose(subject.bundle, f"onnx-{case.precision}", case.embeddings, tensors, live=mode != "stored")
    named = tuple(cause.name for cause in diagnosis.causes)
    return Outcome(case.kind, case.subject, case.precision, mode, case.planted, tuple(sorted(case.expected)), named)


def _measured(subject: Subject, runs: Sequence[Run], size: Size, folder: Path, emulator: str | None) -> Iterator[Outcome]:
    generator = np.random.default_rng(SEED)
    others = dict(_revisions(subject, runs))
    for precision in PRECISIONS:
        planted = [*singles(subject, precision), *strange(subject, precision), *model_faults(subject, precision, others)]
        planted += pairs(subject, precision, generator, size.pairs) if precision != "fp16" else []
        for case in planted:
            yield judge(subject, case, "live")
            if precision == "int8" and case.kind in ("single", "unknown"):
                yield judge(subject, case, "stored")
            if case.tensors is not None and case.kind in ("single", "pair") and precision == "int8":
                yield judge(subject, case, "tensors")
        for case in healthy(subject, precision):
            yield from (judge(subject, case, mode) for mode in ("live", "stored", "tensors"))
        for draw in range(size.draws):
            rows = np.sort(generator.choice(min(PAIR_PROBES, len(subject.probes)), 24, replace=False))
            drawn = subject.drawn(rows, folder / f"{subject.name.replace('/', '-')}-{precision}-{draw}")
            for case in healthy(drawn, precision):
                yield from (judge(drawn, case, mode) for mode in ("live", "stored"))
    for bundle, artifact, case in (*misread(subject, runs[0], folder), *saturated(subject, runs[0], folder, emulator)):
        named = tuple(cause.name for cause in diagnose(bundle, artifact, case.embeddings).causes)
        yield Outcome(case.kind, case.subject, case.precision, "live", case.planted, tuple(case.expected), named)


def _revisions(subject: Subject, runs: Sequence[Run]) -> Iterator[tuple[str, np.ndarray]]:
    """The same recipe trained again: models of the same name in other runs; and models that were trained alone."""
    mine = subject.model.record
    for place, run in enumerate(runs):
        for other in run.models.values():
            same = other.name == subject.model.name and other.record.weights_sha256 != mine.weights_sha256
            alone = other.name in run.controls and other.record.family == mine.family
            if (same or alone) and (other.record.dim, other.record.preprocess) == (mine.dim, mine.preprocess):
                rows = embed(other.build(), other.record, subject.probes.golden)
                yield f"{other.name} of run {place}", rows


def _trained(folder: Path) -> Path:
    """The demo's recipe at ci size, trained where that has not been done yet."""
    from samespace.cloud.recipe import load_recipe
    from samespace.cloud.training import train

    train(load_recipe(ROOT / "examples" / "ship_to_phone" / "recipe.toml", "ci"), folder)
    return folder


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--run", type=Path, help="a finished run; default: a tiny one is trained")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="runs of the same recipe: other revisions")
    parser.add_argument("--models", help="of the run, comma-separated; default: the first")
    parser.add_argument("--emulator", help="qemu-x86_64, to plant saturation on a processor that has VNNI")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "diagnosis.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
