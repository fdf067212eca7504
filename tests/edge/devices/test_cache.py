"""Sets are there, complete and as they were made, or they are not there."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from samespace.edge.devices.cache import cache_dir, damage, installing, read_record, remove_set, set_folder
from samespace.sdk.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(name: str = "toys", recipe: str = "1") -> None:
    with installing(name, recipe, {"made-from": "wood"}) as new:
        assert new is not None
        (new / "root" / "lib").mkdir(parents=True)
        (new / "root" / "lib" / "one.so").write_bytes(b"one" * 100)
        (new / "root" / "two").write_text("two")
        (new / "root" / "link").symlink_to("two")


def leftovers() -> list[str]:
    return sorted(path.name for path in cache_dir().iterdir() if path.name.endswith((".new", ".old")))


def test_a_set_is_there_when_it_is_complete() -> None:
    assert damage("toys", "1") == "it is not installed"
    build()
    assert damage("toys", "1") is None
    assert damage("toys", "1", thorough=True) is None
    record = read_record("toys")
    assert record is not None
    assert record.lock == {"made-from": "wood"}
    assert set(record.files) == {"root/lib/one.so", "root/two", "root/link"}
    assert leftovers() == []
    assert remove_set("toys")
    assert not remove_set("toys")
    assert damage("toys", "1") == "it is not installed"


def test_it_is_not_made_twice_and_another_recipe_replaces_it() -> None:
    build()
    with installing("toys", "1", {}) as new:
        assert new is None
    assert "another version" in str(damage("toys", "2"))
    build(recipe="2")
    assert damage("toys", "2") is None


@pytest.mark.parametrize("victim", ["root/lib/one.so", "root/link", "root/lib", "installed.json", "root"])
def test_what_is_missing_is_noticed_and_mended(victim: str) -> None:
    import shutil

    build()
    path = set_folder("toys") / victim
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert damage("toys", "1") is not None
    build()
    assert damage("toys", "1", thorough=True) is None


def test_what_is_changed_is_noticed() -> None:
    build()
    victim = set_folder("toys") / "root" / "two"
    victim.write_text("owt")
    assert "root/two" in str(damage("toys", "1"))
    victim.write_text("longer")
    assert "root/two" in str(damage("toys", "1"))


def test_a_change_behind_an_equal_size_and_time_is_found_by_the_thorough_look() -> None:
    build()
    victim = set_folder("toys") / "root" / "two"
    before = victim.stat()
    victim.write_text("owt")
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert damage("toys", "1") is None
    assert "root/two" in str(damage("toys", "1", thorough=True))


def test_a_cache_that_was_restored_with_other_times_is_good() -> None:
    build()
    os.utime(set_folder("toys") / "root" / "two", (0, 0))
    assert damage("toys", "1") is None


def test_a_link_that_leads_elsewhere_is_noticed() -> None:
    build()
    link = set_folder("toys") / "root" / "link"
    link.unlink()
    link.symlink_to("/etc/hostname")
    assert "root/link" in str(damage("toys", "1"))


def test_a_full_disk_says_so_and_leaves_nothing() -> None:
    def fill() -> None:
        with installing("toys", "1", {}) as new:
            assert new is not None
            (new / "half").write_text("half")
            with open("/dev/full", "wb") as full:
                full.write(b"more")

    with pytest.raises(ConfigError, match=r"No space left on device.*make room.*SAMESPACE_CACHE_DIR"):
        fill()
    assert leftovers() == []
    assert damage("toys", "1") == "it is not installed"


def test_what_fails_leaves_the_set_that_was_there() -> None:
    build()

    def fail() -> None:
        with installing("toys", "2", {}) as new:
            assert new is not None
            raise ConfigError("no network")

    with pytest.raises(ConfigError, match="no network"):
        fail()
    assert damage("toys", "1", thorough=True) is None
    assert leftovers() == []


_CHILD = """
import sys
from samespace.edge.devices.cache import installing
with installing("toys", "1", {}) as new:
    if new is None:
        print("found", flush=True)
    else:
        (new / "half").write_text("half")
        print("half", flush=True)
        sys.stdin.readline()
"""


def child() -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", _CHILD], text=True, **pipes)


def test_a_killed_installation_is_never_accepted() -> None:
    with child() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert leftovers() == [".toys.new"]
    assert damage("toys", "1") == "it is not installed"
    build()
    assert leftovers() == []
    assert "half" not in str(read_record("toys"))


def test_two_processes_install_one_after_the_other() -> None:
    with child() as first, child() as second:
        assert first.stdout is not None
        assert first.stdin is not None
        assert second.stderr is not None
        assert second.stdout is not None
        # Whichever came first says so; the other one waits and says that.
        streams = (first, second)
        told: dict[int, str] = {}
        threads = [threading.Thread(target=lambda at=at: told.update({at: streams[at].stderr.readline()})) for at in (0, 1)]  # type: ignore[union-attr]
        for thread in threads:
            thread.start()
        while not told:
            threads[0].join(0.05)
        waiting = next(iter(told))
        assert "another process installs 'toys'" in told[waiting]
        builder, waiter = streams[1 - waiting], streams[waiting]
        assert builder.communicate("\n", timeout=30)[0] == "half\n"
        assert waiter.communicate("\n", timeout=30)[0] == "found\n"
        for thread in threads:
            thread.join(30)
    assert damage("toys", "1") is None


def test_a_folder_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"cannot be installed into .*cache.*SAMESPACE_CACHE_DIR"):
        build()


def test_the_errors_that_mean_full_are_told_apart() -> None:
    from samespace.edge.devices.cache import _cannot_write

    assert "make room" in _cannot_write("toys", OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert "make room" not in _cannot_write("toys", PermissionError(errno.EACCES, "Permission denied"))
