"""The check on many devices: in parallel up to the cores, each device in a process of its own that serves many artifacts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TypeVar

from samespace.sdk.bundle import Bundle
from samespace.sdk.check.device_process import DeviceFailed, DeviceProcess, DeviceRefused, Measured, Task
from samespace.sdk.check.gate import Gate, Verdict
from samespace.sdk.check.matrix import Cell, Matrix, host_difference, judged_cell, missing_cell
from samespace.sdk.check.matrix_store import CellStore
from samespace.sdk.check.report import CompatibilityReport
from samespace.sdk.check.searched import read_gallery
from samespace.sdk.devices import device_names
from samespace.sdk.errors import ConfigError
from samespace.sdk.manifest import Artifact
from samespace.sdk.probes import ProbeSet

__all__ = ["HOST", "MatrixCheck", "check_devices"]

#: The device that all others are compared with.
HOST = "host"
#: A device that failed so often in a row is not started again.
_MOST_FAILURES = 2

_Key = tuple[str, str, str]
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class MatrixCheck:
    """A matrix and what is behind it.

    Attributes:
        matrix: the cells.
        checks: reports with their verdicts; a cell's ``check`` points here.
        gates: that judged them.
        resumed: how many cells were taken from an unfinished run.
    """

    matrix: Matrix
    checks: tuple[tuple[CompatibilityReport, Verdict], ...]
    gates: tuple[Gate, ...]
    resumed: int


@dataclass(eq=False)
class _Run:
    """What the threads of one check share."""

    task: Task
    store: CellStore
    advance: Callable[[str], object]
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False
    live: list[DeviceProcess] = field(default_factory=list)
    found: dict[_Key, Measured | str] = field(default_factory=dict)
    resumed: int = 0

    def start(self, name: str) -> DeviceProcess:
        """A process that :meth:`stop` knows."""
        process = DeviceProcess(name, self.task)
        with self.lock:
            if self.stopped:
                raise DeviceFailed("the check was stopped")
            self.live.append(process)
        return process

    def stop(self) -> None:
        """End everything at once."""
        with self.lock:
            self.stopped, live = True, list(self.live)
        for process in live:
            process.kill()

    def take(self, key: _Key, kept: Measured) -> None:
        """A cell of an unfinished run."""
        with self.lock:
            self.found[key], self.resumed = kept, self.resumed + 1
        self.advance(f"{key[1]} in {key[2]} on {key[0]} (from the unfinished run)")

    def note(self, key: _Key, result: Measured | str) -> None:
        """A cell of this run."""
        self.found[key] = result
        if isinstance(result, Measured):
            self.store.put(*key, result)
        self.advance(f"{key[1]} in {key[2]} on {key[0]}")


def check_devices(
    task: Task,
    devices: Sequence[str],
    *,
    artifacts: Sequence[str] = (),
    runtimes: Sequence[str] = (),
    limits: Mapping[str, float] | None = None,
    workers: int | None = None,
    fresh: bool = False,
    planned: Callable[[int], object] = lambda total: None,
    advance: Callable[[str], object] = lambda place: None,
) -> MatrixCheck:
    """Check a bundle's artifacts on devices, and compare each with this machine.

    Args:
        task: bundle, gallery and settings.
        devices: names, each once.
        artifacts: names, paths or formats; empty means all.
        runtimes: names; empty means all that a device has.
        limits: that replace the gate's.
        workers: devices at one time; by default as many as there are cores.
        fresh: take no cell from an unfinished run.
        planned: called once with the number of cells to come.
        advance: called after each of them, from any thread.

    Returns:
        One cell for each device, artifact and runtime. A device that cannot be used, crashes or does not answer has cells that
        say so, and takes nothing from the others.

    Raises:
        BundleError: the bundle cannot be opened.
        ConfigError: no such device, artifact, gallery file or limit, or nothing named fits anywhere.
        SpaceMismatchError: the gallery is of another space.
    """
    _known(devices)
    bundle = Bundle.open(task.bundle, allow_unsigned=task.allow_unsigned)
    probes = ProbeSet.from_bundle(bundle)
    chosen = [bundle.artifact(name).spec for name in dict.fromkeys(artifacts)] if artifacts else list(bundle.artifacts)
    # What is wrong with the question itself is told before anything is started.
    if (sample := read_gallery(task.gallery)) is not None:
        sample.comparable(bundle.manifest)
    for spec in chosen:
        Gate.default(spec.precision).replaced(**limits or {})
    run = _Run(task, CellStore(task, bundle, fresh=fresh), advance)
    names = [*devices, *([] if HOST in devices else [HOST])]
    pool = ThreadPoolExecutor(workers or _cores(), thread_name_prefix="samespace-device")
    try:
        opened = dict(zip(names, _all([pool.submit(_open, run, name) for name in names]), strict=True))
        plan = {name: _jobs(opened[name], chosen, runtimes) for name in devices}
        if runtimes and not any(plan.values()) and all(isinstance(process, _Opened) for process in opened.values()):
            raise ConfigError(f"{task.bundle}: none of these devices runs any of it in {' or '.join(runtimes)}")
        beside = _counterparts(opened[HOST], {job for name in devices for job in plan[name]}, bundle)
        todo = plan | {HOST: list(dict.fromkeys([*plan.get(HOST, []), *beside]))}
        planned(sum(len(todo[name]) for name in names))
        # This machine first: it is fast, and every other cell is compared with it.
        order = sorted(names, key=lambda name: name != HOST)
        _all([pool.submit(_serve, run, name, opened[name], todo[name]) for name in order])
    except BaseException:
        run.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    result = _result(run, bundle, probes, list(devices), chosen, opened, plan, limits or {}, bool(runtimes))
    if not any(cell.state == "failed" for cell in result.matrix.cells):
        run.store.clear()
    return result


@dataclass(eq=False)
class _Opened:
    process: DeviceProcess
    runtimes: Mapping[str, tuple[str, ...]]


def _known(devices: Sequence[str]) -> None:
    known = device_names()
    for name in devices:
        if name not in known:
            there = ", ".join(known) or "none (is samespace installed?)"
            raise ConfigError(f"no device is called {name!r}; there are: {there}")
    if twice := sorted({name for name in devices if list(devices).count(name) > 1}):
        raise ConfigError(f"device {twice[0]!r} is named twice")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _all(futures: Sequence[Future[_T]]) -> list[_T]:
    """Their results; waits in steps that Ctrl-C interrupts on every system."""
    # Not concurrent.futures.wait: interrupted while it holds the futures' locks, it leaves the threads waiting for ever.
    done: SimpleQueue[Future[_T]] = SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    for _ in futures:
        _next(done).result()
    return [future.result() for future in futures]


def _next(done: SimpleQueue[_T]) -> _T:
    while True:
        with contextlib.suppress(Empty):
            return done.get(timeout=1)


def _open(run: _Run, name: str) -> _Opened | str:
    """An opened device, or why it cannot be used."""
    try:
        process = run.start(name)
        return _Opened(process, process.open())
    except (DeviceRefused, DeviceFailed) as error:
        return str(error)


def _jobs(opened: _Opened | str, specs: Sequence[Artifact], runtimes: Sequence[str]) -> list[tuple[str, str]]:
    if isinstance(opened, str):
        return []
    return [
        (spec.name, runtime)
        for spec in specs
        for runtime in opened.runtimes.get(spec.format, ())
        if not runtimes or runtime in runtimes
    ]


def _counterpart(host: _Opened | str, format: str, runtime: str) -> str | None:
    """The runtime on this machine that a device's is compared with: the same, else the best for the format."""
    here = () if isinstance(host, str) else host.runtimes.get(format, ())
    return runtime if runtime in here else next(iter(here), None)


def _counterparts(host: _Opened | str, jobs: set[tuple[str, str]], bundle: Bundle) -> list[tuple[str, str]]:
    pairs = [(name, _counterpart(host, bundle.artifact(name).spec.format, runtime)) for name, runtime in sorted(jobs)]
    return [(name, runtime) for name, runtime in pairs if runtime is not None]


def _serve(run: _Run, name: str, opened: _Opened | str, jobs: Sequence[tuple[str, str]]) -> None:
    """Measure all jobs of a device, one after the other; a device that fails is started again for the next, not for ever."""
    process = None if isinstance(opened, str) else opened.process
    failures = 0
    try:
        for artifact, runtime in jobs:
            key = (name, artifact, runtime)
            if kept := run.store.get(*key):
                run.take(key, kept)
                continue
            try:
                if process is None:
                    process = run.start(name)
                    process.open()
                run.note(key, process.measure(artifact, runtime))
                failures = 0
            except DeviceRefused as error:
                run.note(key, str(error))
            except DeviceFailed as error:
                run.note(key, str(error))
                process, failures = None, failures + 1
                if failures >= _MOST_FAILURES or run.stopped:
                    break
    finally:
        if process is not None:
            process.close()


def _result(
    run: _Run,
    bundle: Bundle,
    probes: ProbeSet,
    devices: list[str],
    specs: list[Artifact],
    opened: Mapping[str, _Opened | str],
    plan: Mapping[str, list[tuple[str, str]]],
    limits: Mapping[str, float],
    chosen_runtimes: bool,
) -> MatrixCheck:
    cells: list[Cell] = []
    checks: list[tuple[CompatibilityReport, Verdict]] = []
    gates: list[Gate] = []
    for spec in specs:
        for name in devices:
            device = opened[name]
            runtimes = [runtime for artifact, runtime in plan[name] if artifact == spec.name]
            if isinstance(device, str):
                cells.append(missing_cell(name, spec.name, "", "failed", device))
            elif not runtimes:
                why = "none of these runtimes there" if chosen_runtimes else f"no runtime for {spec.format} there"
                cells.append(missing_cell(name, spec.name, "", "no runtime", why))
            for runtime in runtimes:
                found = run.found.get((name, spec.name, runtime), f"not tried: {name} failed {_MOST_FAILURES} times in a row")
                if isinstance(found, str):
                    cells.append(missing_cell(name, spec.name, runtime, "failed", found))
                    continue
                cell, gate, verdict = judged_cell(found.report, found.embeddings, limits)
                more: dict[str, object] = {"check": len(checks)}
                counterpart = _counterpart(opened[HOST], spec.format, runtime)
                here = run.found.get((HOST, spec.name, counterpart or ""))
                if counterpart is not None and isinstance(here, Measured) and name != HOST:
                    both = (found.embeddings, here.embeddings)
                    if both[0] is not None and both[1] is not None:
                        more["host"] = host_difference(both[0], both[1], probes, spec, counterpart)
                cells.append(cell.model_copy(update=more))
                checks.append((found.report, verdict))
                gates.append(gate)
    matrix = Matrix(
        bundle=str(run.task.bundle),
        model=bundle.manifest.model.name,
        model_id=bundle.manifest.model_id,
        devices=tuple(devices),
        artifacts=tuple(spec.name for spec in specs),
        cells=tuple(cells),
        host_failed=host if isinstance(host := opened[HOST], str) else "",
    )
    return MatrixCheck(matrix, tuple(checks), tuple(gates), run.resumed)
