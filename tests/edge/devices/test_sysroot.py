"""Building sysroots and ``samespace devices``, as far as no emulator and no network is needed."""

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from samespace.edge.devices import cache, cli, load_profile, profile_names
from samespace.edge.devices.installs import INSTALLS, load_install
from samespace.edge.devices.profile import QemuUser
from samespace.edge.devices.registry import open_device
from samespace.edge.devices.sysroot import Sysroot, guest_sdk
from samespace.edge.devices.sysroot.apt import AptRoot
from samespace.edge.devices.sysroot.architectures import ARCHITECTURES
from samespace.edge.devices.sysroot.commands import run
from samespace.edge.devices.sysroot.guest import remove_old_guests
from samespace.sdk.errors import ConfigError

ROOT = Path(__file__).parents[3]
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", INSTALLS)
def test_every_set_can_be_asked(name: str) -> None:
    found = load_install(name)
    assert found.name == name
    assert found.description
    wrong = found.check()
    assert wrong is not None
    assert f"samespace devices install {name}" in wrong
    assert found.details() == {}
    assert found.remove() is False


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(ConfigError, match="nothing to install is called 'amiga'; there is: arm64"):
        load_install("amiga")


@pytest.mark.parametrize("name", [name for name in profile_names() if isinstance(load_profile(name).runs, QemuUser)])
def test_a_device_that_is_not_installed_says_how_to_install_it(name: str) -> None:
    runs = load_profile(name).runs
    assert isinstance(runs, QemuUser)
    with pytest.raises(ConfigError, match=f"device '{name}' needs .*samespace devices install {runs.architecture}"):
        open_device(name)


def test_the_devices_processors_are_the_ones_they_are_named_after() -> None:
    cpus = {name: load_profile(name).runs.cpu for name in ("a53", "a55", "a76", "a710", "a7")}  # type: ignore[union-attr]
    assert cpus == {name: f"cortex-{name}" for name in cpus}


def test_wheels_have_the_versions_that_this_repository_is_tested_with() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if re.fullmatch(r"[A-Za-z0-9._-]+==\S+", line))
    for architecture in ARCHITECTURES.values():
        for wheel in architecture.wheels:
            name, version = wheel.lower().split("==")
            known = pinned.get(name, pinned.get(name.replace("_", "-"), version))
            assert version == known, wheel


def test_a_device_gets_samespace_as_it_is_here(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = guest_sdk()
    assert (place / "samespace" / "sdk" / "bundle.py").read_bytes() == (ROOT / "sdk/samespace/sdk/bundle.py").read_bytes()
    assert (place / "worker.py").exists()
    assert not (place / "samespace" / "edge").exists()
    assert guest_sdk() == place
    (place / "worker.py").write_text("half")
    assert guest_sdk() == place
    assert (place / "worker.py").read_text() != "half"
    old = place.with_name("guest-sdk-of-last-year")
    old.mkdir()
    os.utime(old, (0, 0))
    remove_old_guests()
    assert not old.exists()
    assert place.exists()
    assert not list(cache_folder.glob(".*"))


def test_a_copy_that_cannot_be_written_is_named(cache_folder: Path) -> None:
    cache_folder.write_text("a file")
    with pytest.raises(ConfigError, match="SAMESPACE_CACHE_DIR"):
        guest_sdk()


def test_no_room_is_said_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
    with pytest.raises(ConfigError, match=r"takes \d+ MB while it is built, and .* has 5 MB free; make room"):
        Sysroot(ARCHITECTURES["arm64"]).install()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit('E: Unable to locate package')", "trying failed .*E: Unable to locate package.*try again"),
        ("import sys; sys.exit('tar: x: No space left on device')", "No space left on device.*make room"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import threading; threading.Event().wait()", "took longer than 0.5 s"),
    ],
)
def test_a_program_that_fails_says_what_it_was_for(script: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run([sys.executable, "-c", script], "trying", seconds=0.5 if "Event" in script else 30)


def test_a_program_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # The grandchild holds the pipe open as long as it lives: the reader ends when both have ended.
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(fifo.read_bytes()), daemon=True)
    reader.start()
    with pytest.raises(ConfigError, match="took longer"):
        run(["sh", "-c", f"sh -c 'echo on; exec cat /dev/zero >/dev/null' > {fifo} & wait"], "trying", seconds=1)
    reader.join(10)
    assert found == [b"on\n"]


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="trying needs the program 'no-such-program'"):
        run(["no-such-program"], "trying", seconds=1)


def test_without_apt_it_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs apt-get and dpkg-deb"):
        AptRoot(tmp_path / "apt", "arm64", security=True)


@pytest.fixture
def apt_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put an apt first that says that of its lists and of its sources."""

    def say(lists: str, sources: str) -> None:
        programs = tmp_path / "bin"
        programs.mkdir()
        apt = f'[ "$1" = indextargets ] && cat <<END || cat <<MORE\n{lists}\nEND\n{sources}\nMORE'
        for name, script in {"apt-get": apt, "dpkg": "echo amd64", "dpkg-deb": ""}.items():
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)

    return say


def test_without_a_source_of_debian_it_says_so(tmp_path: Path, apt_says: Callable[[str, str], None]) -> None:
    apt_says("Ubuntu|somewhere|noble|main\nDocker|third|bookworm|stable", "'somewhere/dists/noble/InRelease' some 0")
    with pytest.raises(ConfigError, match=r"no source of Debian.*SAMESPACE_DEBIAN_MIRROR"):
        AptRoot(tmp_path / "apt", "arm64", security=True)


_LISTS = """Docker|third/linux|bookworm|stable
Debian|some/debian-security|bookworm-security|main
Debian|some/debian|bookworm|main
Debian|some/debian|bookworm-updates|main"""
_SOURCES = """'third/linux/dists/bookworm/InRelease' third 0
'some/debian-security/dists/bookworm-security/InRelease' some 0
'some/debian/dists/bookworm/InRelease' some 0"""


@pytest.mark.parametrize("lists", [_LISTS, ""])
@pytest.mark.skipif(not KEYRING.exists(), reason="no keyring of Debian")
def test_the_hosts_sources_are_used_also_before_their_lists_were_fetched(
    lists: str, tmp_path: Path, apt_says: Callable[[str, str], None]
) -> None:
    apt_says(lists, _SOURCES)
    root = AptRoot(tmp_path / "apt", "arm64", security=True)
    signed = f"[signed-by={KEYRING} arch="
    assert (root.folder / "sources.list").read_text().splitlines() == [
        f"deb {signed}arm64] some/debian bookworm main",
        f"deb {signed}amd64] some/debian bookworm-backports main",
        f"deb {signed}arm64] some/debian-security bookworm-security main",
    ]


def test_list_shows_devices_and_sets() -> None:
    result = CliRunner().invoke(cli.app, ["list"])
    assert result.exit_code == 0
    assert "a53" in result.output
    assert "Cortex-A53" in result.output
    assert "arm64          not usable: it is not installed; install it: samespace devices install arm64" in result.output
    told = json.loads(CliRunner().invoke(cli.app, ["list", "--json"]).output)
    assert {one["name"] for one in told["devices"]} == set(profile_names())
    assert {one["name"]: one["usable"] for one in told["sets"]}["arm64"] is False


def test_doctor_fails_when_something_is_wrong() -> None:
    assert "nothing is installed" in CliRunner().invoke(cli.app, ["doctor"]).output
    result = CliRunner().invoke(cli.app, ["doctor", "arm64"])
    assert result.exit_code == 1
    assert "arm64: it is not installed" in result.output
    with cache.installing("arm64", "of another version", {"debs": [], "wheels": []}):
        pass
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "another version of samespace" in result.output
    assert "arm64: removed" in CliRunner().invoke(cli.app, ["remove", "arm64"]).output
    assert "arm64: was not installed" in CliRunner().invoke(cli.app, ["remove", "arm64"]).output


def test_a_wrong_name_stops_before_anything_is_done() -> None:
    with cache.installing("arm64", "1", {"debs": [], "wheels": []}):
        pass
    result = CliRunner().invoke(cli.app, ["remove", "arm64", "amiga"])
    assert isinstance(result.exception, ConfigError)
    assert cache.set_folder("arm64").exists()
