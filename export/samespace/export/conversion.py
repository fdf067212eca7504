"""Running the converters: each format in a process of its own, side by side, and quiet.

Converters take seconds to import, print on both streams, and some crash hard. In a child process they cannot disturb the
parent's output, their chatter is kept for the error message, and a crash is an :class:`~samespace.sdk.errors.ExportError`. One
child converts all models to one format, so that it imports its converter once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from samespace.export.formats import EXPORTERS
from samespace.export.formats.base import Conversion, Precision
from samespace.export.options import DEFAULT_OPTIONS, ExportOptions
from samespace.export.quantisation.choose import Search
from samespace.export.quantisation.judge import HeldOut
from samespace.export.run import RunModel
from samespace.sdk.errors import ExportError
from samespace.sdk.manifest import TensorSpec

__all__ = ["Job", "convert", "read_conversion", "write_conversion"]

#: Formats that share a child with another one, which they are made of.
_TOGETHER = {"ort": "onnx"}

#: Characters of a converter's output that an error message shows.
_TAIL = 1500


@dataclass(frozen=True)
class Job:
    """One conversion.

    Attributes:
        model: of a run.
        format: a name in ``EXPORTERS``.
        precision: one that the exporter has.
        options: of the exporter.
        held_out: pictures that judge static int8; without them int8 is converted as it comes.
        search: for the layers that int8 leaves in float.
    """

    model: RunModel
    format: str
    precision: Precision
    options: ExportOptions = DEFAULT_OPTIONS
    held_out: HeldOut | None = None
    search: Search = Search()  # noqa: RUF009 - frozen

    def __str__(self) -> str:
        return f"{self.model.name} to {self.format}-{self.precision}"


def convert(
    jobs: Sequence[Job],
    workers: int = 2,
    done: Callable[[Job], object] = lambda job: None,
    say: Callable[[str], object] = lambda text: None,
) -> list[Conversion]:
    """Convert; the results are in the order of the jobs.

    Args:
        jobs: what to convert.
        workers: processes at once; each needs about 1 GiB.
        done: called when a job has ended well, from another thread.
        say: called with what a long job is doing, from another thread.

    Raises:
        ExportError: a converter failed or crashed; with the end of what it said.
    """
    groups: dict[str, list[int]] = {}
    for index, job in enumerate(jobs):
        groups.setdefault(_TOGETHER.get(job.format, job.format), []).append(index)
    # The slowest converter first, so that the others run beside it.
    order = sorted(groups, key=lambda name: (name != "tflite", name))
    threads = max(1, (os.cpu_count() or 1) // max(1, min(workers, len(order))))
    with tempfile.TemporaryDirectory(prefix="samespace-export-") as folder, _Children() as children:
        for index, job in enumerate(jobs):
            _write_job(Path(folder) / str(index), job)

        def run(name: str) -> None:
            _run_group(Path(folder), groups[name], jobs, threads, children, done, say)

        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            futures = [pool.submit(run, name) for name in order]
            try:
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                # Neither a failure nor Ctrl-C waits for the conversions that are still running.
                children.close()
                raise
        return [read_conversion(Path(folder) / str(index) / "result") for index in range(len(jobs))]


def write_conversion(folder: Path, conversion: Conversion) -> None:
    """Write a conversion's files, and ``conversion.json`` beside them, below a folder."""
    names = sorted(conversion.files)
    for index, name in enumerate(names):
        (folder / f"{index}.bin").write_bytes(conversion.files[name])
    about = asdict(conversion) | {"files": names, "input": conversion.input.model_dump()}
    (folder / "conversion.json").write_text(json.dumps(about))


def read_conversion(folder: Path) -> Conversion:
    """The reverse of :func:`write_conversion`."""
    about: dict[str, Any] = json.loads((folder / "conversion.json").read_text())
    about["files"] = {name: (folder / f"{index}.bin").read_bytes() for index, name in enumerate(about["files"])}
    about["input"] = TensorSpec.model_validate(about["input"])
    return Conversion(**about)


def _write_job(folder: Path, job: Job) -> None:
    (folder / "result").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(job.model.weights)
    about = {
        "name": job.model.name,
        "record": job.model.record.model_dump(mode="json"),
        "exporter": EXPORTERS[job.format],
        "precision": job.precision,
        "search": asdict(job.search),
        "options": {
            field.name: getattr(job.options, field.name) for field in fields(ExportOptions) if field.name != "calibration"
        },
    }
    if job.options.calibration is not None:
        np.save(folder / "calibration.npy", job.options.calibration)
    if job.held_out is not None:
        arrays = {field.name: getattr(job.held_out, field.name) for field in fields(HeldOut)}
        np.savez(folder / "held_out.npz", **{name: array for name, array in arrays.items() if array is not None})
    (folder / "job.json").write_text(json.dumps(about))


def _run_group(
    folder: Path,
    indices: list[int],
    jobs: Sequence[Job],
    threads: int,
    children: _Children,
    done: Callable[[Job], object],
    say: Callable[[str], object],
) -> None:
    """Run one child over some jobs; it prints a line of JSON after each, and some between."""
    log = folder / f"{indices[0]}.log"
    environment = os.environ | {
        # What this process can import, the child can; but not what lies in the folder it was started from.
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry),
        "OMP_NUM_THREADS": str(threads),
        "ORT_DISABLE_TELEMETRY": "1",
    }
    with log.open("w") as chatter:
        child = children.start(
            [sys.executable, "-P", "-m", "samespace.export.worker", *(str(folder / str(index)) for index in indices)],
            chatter,
            environment,
        )
    assert child.stdout is not None
    waiting = list(indices)
    for line in child.stdout:
        answer = json.loads(line)
        if "doing" in answer:
            say(f"{jobs[waiting[0]]}: {answer['doing']}")
            continue
        job = jobs[waiting.pop(0)]
        if "error" in answer:
            raise ExportError(f"converting {job} failed: {answer['error']}{'' if answer['expected'] else _said(log)}")
        done(job)
    code = child.wait()
    if waiting:
        raise ExportError(f"converting {jobs[waiting[0]]} failed: the converter ended with exit code {code}{_said(log)}")


def _said(log: Path) -> str:
    text = log.read_text(errors="replace").strip()
    return f"\nThe converter said:\n{text[-_TAIL:]}" if text else ""


class _Children:
    """Processes that do not outlive the block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._children: list[subprocess.Popen[str]] = []

    def start(self, command: Sequence[str], stderr: IO[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start one that talks on its standard output; refused once the block has been left."""
        with self._lock:
            if self._closed:
                raise ExportError("the export was stopped")
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True
            )
            self._children.append(child)
            return child

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._closed = True
            for child in self._children:
                if child.poll() is None:
                    child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        for child in self._children:
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
