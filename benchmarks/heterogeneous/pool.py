"""Jobs over a pool of workers: one process a core, one thread each, long jobs first; what is done already is not done again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol import Job

from samespace.cloud.toml import to_toml

__all__ = ["Workplace", "cores", "run_jobs"]

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Workplace:
    """Where a run of the benchmark lives.

    Attributes:
        folder: of everything.
        size: key of :data:`protocol.SIZES`.
    """

    folder: Path
    size: str

    def run(self, name: str) -> Path:
        """The folder of a job's results."""
        return self.folder / "runs" / name

    def done(self, job: Job) -> bool:
        """Whether it has finished: the file that is written last is there."""
        return (self.run(job.name) / ("matrices.json" if job.recipe else "done.json")).exists()

    def command(self, job: Job) -> list[str]:
        """What is run; a recipe is written where the command expects it."""
        if job.recipe is None:
            script, *arguments = job.script
            return [sys.executable, str(HERE / script), str(self.folder), self.size, *arguments]
        path = self.folder / "recipes" / f"{job.name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_toml(job.recipe))
        return [str(Path(sys.executable).parent / "samespace"), "train", str(path), "-o", str(self.run(job.name))]


def run_jobs(place: Workplace, wanted: Sequence[Job], workers: int, say: Callable[[str], None] | None = None) -> dict[str, str]:
    """Run what is not done yet; a job that fails is named, and the others go on.

    Args:
        place: where.
        wanted: the jobs; what they come after must be among them or done.
        workers: processes at once.
        say: takes one line of news; None prints them.

    Returns:
        job -> why it failed or could not begin; empty when all are done.
    """
    say = say or _print
    left = sorted((job for job in wanted if not place.done(job)), key=lambda job: -job.seconds)
    # What others wait for goes first of all.
    awaited = {name for job in left for name in job.after}
    left.sort(key=lambda job: job.name not in awaited)
    finished = {job.name for job in wanted if place.done(job)}
    failed: dict[str, str] = {}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    (place.folder / "logs").mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "SAMESPACE_SIZE": "full",
        "COLUMNS": "100",
        "PYTHONUNBUFFERED": "1",
    }
    try:
        while left or running:
            for job in [job for job in left if any(name in failed for name in job.after)]:
                left.remove(job)
                failed[job.name] = f"needs {', '.join(job.after)}"
            while len(running) < workers and (job := next((job for job in left if set(job.after) <= finished), None)):
                left.remove(job)
                running[job.name] = _start(place, job, environment), time.monotonic()
                say(f"began {job.name}, {len(left)} waiting")
            for name, (process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                minutes = (time.monotonic() - began) / 60
                if process.returncode == 0:
                    finished.add(name)
                    say(f"done  {name} in {minutes:.1f} min")
                else:
                    failed[name] = _last_line(place.folder / "logs" / f"{name}.log") or f"exit code {process.returncode}"
                    say(f"FAILED {name}: {failed[name]}")
            if not running and left and not any(set(job.after) <= finished for job in left):
                failed |= {job.name: f"needs {', '.join(job.after)}, which is not done" for job in left}
                break
            time.sleep(0.1)
    finally:
        # A run that is asked to stop writes its checkpoint first, and goes on from there next time.
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    return failed


def _start(place: Workplace, job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with open(place.folder / "logs" / f"{job.name}.log", "wb") as log:
        return subprocess.Popen(place.command(job), stdout=log, stderr=subprocess.STDOUT, env=environment)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    return lines[-1].strip() if lines else ""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _print(line: str) -> None:
    print(line, flush=True)
