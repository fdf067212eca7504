"""Atomic writes: the old state or the new one, never half of it, and nothing left over."""

import os
import stat
from pathlib import Path

import pytest

from samespace.sdk import files
from samespace.sdk.files import atomic_directory, atomic_file, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class BrokenError(Exception):
    pass


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["tëxt\n", "", b"\x00\xff"])
def test_a_file_holds_what_was_written(tmp_path: Path, data: str | bytes) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for _ in range(2):
        atomic_write(path, data)
        assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half of it")
            file.flush()
            assert (path.read_bytes() if path.exists() else None) == before
            raise BrokenError

    with pytest.raises(BrokenError):
        write_half()
    assert (path.read_bytes() if path.exists() else None) == before
    assert names(tmp_path) == ([] if before is None else ["file"])


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_step_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, _refuse)
        with pytest.raises(OSError, match="No space"):
            atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_without_overwrite_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        atomic_write(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    assert path.stat().st_nlink == 1
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
@pytest.mark.parametrize(("umask", "mode", "expected"), [(0o022, 0o666, 0o644), (0o077, 0o666, 0o600), (0, 0o600, 0o600)])
def test_permissions_obey_the_umask(tmp_path: Path, umask: int, mode: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "file", mode=mode) as file:
            (temporary,) = tmp_path.iterdir()
            assert stat.S_IMODE(temporary.stat().st_mode) == expected  # from the first byte on
            file.write(b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == expected


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"target")
    (tmp_path / "file").symlink_to(tmp_path / "target")
    atomic_write(tmp_path / "file", b"new")
    assert (tmp_path / "target").read_bytes() == b"target"
    assert not (tmp_path / "file").is_symlink()


# --- folders ----------------------------------------------------------------------------------------


@pytest.fixture(params=["exchange", "step aside"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of replacing a folder: in one step, and where the system cannot."""
    if request.param == "step aside":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def write_new(path: Path) -> None:
    with atomic_directory(path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_bytes(b"new")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("before", ["nothing", "folder", "empty folder", "file", "link", "dangling link"])
def test_a_folder_replaces_whatever_was_there(tmp_path: Path, before: str) -> None:
    path, elsewhere = tmp_path / "here" / "folder", tmp_path / "elsewhere"
    path.parent.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"kept")
    if "folder" in before:
        path.mkdir()
    if before == "folder":
        (path / "old").write_bytes(b"old")
    elif before == "file":
        path.write_bytes(b"old")
    elif "link" in before:
        path.symlink_to(elsewhere if before == "link" else tmp_path / "nowhere")
    write_new(path)
    assert names(path) == ["deep"]
    assert (path / "deep" / "new").read_bytes() == b"new"
    assert names(path.parent) == ["folder"]
    assert names(elsewhere) == ["kept"]


@pytest.mark.usefixtures("way")
def test_a_folder_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_bytes(b"old")

    def write_half() -> None:
        with atomic_directory(path) as folder:
            (folder / "new").write_bytes(b"new")
            assert names(path) == ["old"]
            raise BrokenError

    with pytest.raises(BrokenError):
        write_half()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_the_old_folder_steps_aside_it_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").write_bytes(b"old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    replace, calls = os.replace, iter(range(100))

    def failing_once(one: Path, other: Path) -> None:
        if next(calls) == allowed:
            _refuse()
        replace(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing_once)
        with pytest.raises(OSError, match="No space"):
            write_new(path)
    assert names(path) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_this_system_exchanges_in_one_step(tmp_path: Path) -> None:
    # Linux and macOS: readers never find the path empty. Both exist at every moment, so no moment is observed here; the
    # system call's answer is.
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"")
    if files._exchange(tmp_path / "one", tmp_path / "other"):
        assert names(tmp_path / "one") == ["other"]
        assert names(tmp_path / "other") == ["one"]
    else:
        assert names(tmp_path / "one") == ["one"]
    assert not files._exchange(tmp_path / "one", tmp_path / "missing")
    assert names(tmp_path) == ["one", "other"]


def _refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")
