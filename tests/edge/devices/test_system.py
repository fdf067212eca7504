"""Whole small systems, as far as no emulator is needed: the initramfs, the command line, how an end is told, the guard."""

import io
import itertools
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from samespace.edge.devices import load_profile, profile_names
from samespace.edge.devices.cache import installing
from samespace.edge.devices.profile import QemuSystem
from samespace.edge.devices.registry import open_device
from samespace.edge.devices.sysroot import sysroot
from samespace.edge.devices.system import QemuSystemDevice, SystemSet, system_set
from samespace.edge.devices.system.device import ended
from samespace.edge.devices.system.initramfs import Entry, device, file, folder, link, modules_in_order, newc
from samespace.edge.devices.system.install import init_script
from samespace.sdk import Bundle, ProbeSet, RuntimeOptions, TrustStore
from samespace.sdk.errors import ConfigError
from samespace.sdk.isolation_child import read_json
from samespace.sdk.runtimes import child_frames
from samespace.sdk.signing import PublicKey

CORPUS = Path(__file__).parents[2] / "corpus" / "bundle-v2"
OPTIONS = RuntimeOptions(threads=1)
KILLED = (
    "71 (python3.11) total-vm:612340kB, anon-rss:64512kB, file-rss:128kB, shmem-rss:0kB, UID:0 pgtables:300kB oom_score_adj:0"
)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAMESPACE_CACHE_DIR", str(tmp_path / "cache,with comma"))
    return tmp_path / "cache,with comma"


@pytest.fixture
def installed() -> SystemSet:
    """The two sets as recorded, with a few bytes in each file."""
    root = sysroot("arm64")
    with installing("arm64", root.recipe, {"debs": [], "wheels": []}) as new:
        assert new is not None
        (new / "root").mkdir()
        (new / "qemu").write_bytes(b"qemu")
    found = system_set()
    debs = [{"name": name, "version": "1"} for name in ("linux-image-6.1.0-1-arm64", "qemu-system-arm")]
    with installing(found.name, found.recipe, {"debs": debs}) as new:
        assert new is not None
        (new / "qemu" / "lib").mkdir(parents=True)
        for name in ("kernel", "initramfs", "qemu/qemu-system-aarch64", "qemu/lib/ld-linux-any.so.2"):
            (new / name).write_bytes(name.encode())
    assert found.check() is None
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    trust = TrustStore(tmp_path / "trust")
    trust.add(PublicKey.load(CORPUS / "signer.pub.pem"), "corpus")
    return Bundle.open(next(CORPUS.glob("*.samespace")), trust=trust)


def slowly_read(archive: bytes) -> list[tuple[str, int, int, tuple[int, int], bytes]]:
    """(name, mode, links, device numbers, data) of each member, by the kernel's description of the format, field by field."""
    stream, found, inodes = io.BytesIO(archive), [], set()

    def number() -> int:
        return int(stream.read(8), 16)

    def align() -> None:
        while stream.tell() % 4:
            assert stream.read(1) == b"\0"

    while True:
        assert stream.read(6) == b"070701"
        inode, mode, user, group, links, time, size, on_major, on_minor, major, minor, length, check = (
            number() for _ in range(13)
        )
        assert (user, group, time, on_major, on_minor, check) == (0,) * 6
        name = stream.read(length)
        assert name.endswith(b"\0")
        align()
        data = stream.read(size)
        assert len(data) == size
        align()
        if name == b"TRAILER!!!\0":
            assert stream.read() == b""
            return found
        assert inode not in inodes
        inodes.add(inode)
        found.append((name[:-1].decode(), mode, links, (major, minor), data))


def test_the_archive_is_what_the_kernel_reads() -> None:
    entries = [
        folder("dev"),
        device("dev/console", 5, 1),
        *(file(f"dev/{size}", bytes(range(size)), executable=size == 3) for size in range(9)),
        link("lib", "sysroot/lib"),
    ]
    found = slowly_read(newc(entries))
    assert [(name, mode, numbers, data) for name, mode, _, numbers, data in found] == [
        (entry.name, entry.mode, entry.numbers, entry.data) for entry in entries
    ]
    assert [links for _, _, links, _, _ in found] == [2, *[1] * 11]
    assert stat.filemode(found[1][1]) == "crw-------"
    assert stat.filemode(found[5][1]) == "-rwxr-xr-x"
    assert stat.S_ISLNK(found[-1][1])
    assert newc(entries) == newc(list(entries))


@pytest.mark.parametrize(
    "entries",
    [[folder("a"), folder("a")], [file("a/b", b"")], [file("a", b""), file("a/b", b"")], [file("/a", b"")]],
)
def test_what_the_kernel_would_unpack_otherwise_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(ValueError, match="comes twice, is absolute, or lies in a folder"):
        newc(entries)


def test_drivers_come_behind_what_they_need(tmp_path: Path) -> None:
    needs = {"9p": "9pnet,fscache", "9pnet": "", "9pnet_virtio": "9pnet", "fscache": "netfs", "netfs": "", "unused": "nothing"}
    for name, text in needs.items():
        place = tmp_path / "kernel" / name[:2]
        place.mkdir(parents=True, exist_ok=True)
        # As in the section .modinfo.
        (place / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + text.encode() + b"\0intree=Y\0")
    with pytest.raises(ConfigError, match="no module '9pnet_missing'"):
        modules_in_order(tmp_path, ("9pnet-missing",))
    found = [path.stem for path in modules_in_order(tmp_path, ("9pnet_virtio", "9p", "virtio"), ["virtio"])]
    assert found == ["9pnet", "9pnet_virtio", "netfs", "fscache", "9p"]
    with pytest.raises(ConfigError, match="no module 'nothing'"):
        modules_in_order(tmp_path, ("unused",))


def test_the_first_program_is_a_script_whose_answer_is_of_the_protocol(tmp_path: Path) -> None:
    script = init_script(sysroot("arm64"))
    assert "@" not in re.sub(r"(?m)^#.*$", "", script)
    assert "export PYTHONPATH=/sdk:/opt/site:" in script
    assert subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True).stderr == ""
    functions = "".join(re.findall(r"^(?:tell|plain)\(\) \{\n.*?^\}\n", script, re.MULTILINE | re.DOTALL))
    for text in ("", "x" * 300, 'it said "no" \\ twice,\nand 100 % of it: \x1b[31m é'):
        program = f'{functions}\nprinted=$(plain < {tmp_path}/printed)\ntell "{{\\"printed\\": \\"$printed\\"}}" 3>&1'
        (tmp_path / "printed").write_text(text)
        answer = subprocess.run(["sh", "-c", program], capture_output=True, check=True).stdout
        stream = io.BytesIO(answer)
        told = read_json(stream)["printed"]
        assert stream.read() == b""
        assert len(told) <= 400
        assert told.strip() == re.sub(r"[^A-Za-z0-9 .,:;()_/+=-]", " ", text.encode().decode("latin1")).strip()


def test_the_computer_has_that_memory_no_network_and_reads_three_folders(installed: SystemSet, bundle: Bundle) -> None:
    found = open_device("a53-96mb")
    assert isinstance(found, QemuSystemDevice)
    found._shared = bundle.path.resolve()
    command = found.qemu(Path("/sdk,1"))
    options = {name: value for name, value in itertools.pairwise(command) if name.startswith("-")}
    assert (options["-m"], options["-cpu"], options["-nic"]) == ("96", "cortex-a53", "none")
    assert (options["-kernel"], options["-initrd"]) == (str(installed.kernel), str(installed.initramfs))
    shares = [value for name, value in itertools.pairwise(command) if name == "-fsdev"]
    assert len(shares) == 3
    assert all(",readonly=on," in share for share in shares)
    # QEMU's way to write a comma.
    assert f"path={installed.sysroot.root},security" not in shares[0]
    assert f"path={str(installed.sysroot.root).replace(',', ',,')},security" in shares[0]
    assert "path=/sdk,,1,security" in shares[1]
    assert f"path={bundle.path.resolve()},security" in shares[2]
    assert found.inside(bundle.path) == "/bundle"
    assert found.inside(bundle.path / "manifest.json") == "/bundle/manifest.json"


@pytest.mark.parametrize("name", [name for name in profile_names() if isinstance(load_profile(name).runs, QemuSystem)])
def test_a_profile_has_the_memory_that_it_is_named_after(name: str) -> None:
    runs = load_profile(name).runs
    assert isinstance(runs, QemuSystem)
    assert name == f"{runs.cpu.removeprefix('cortex-')}-{runs.memory_mb}mb"
    with pytest.raises(ConfigError, match=f"device '{name}' needs the set 'arm64-system': it is not installed"):
        open_device(name)


def test_a_kernel_that_was_cut_short_is_refused(installed: SystemSet) -> None:
    os.truncate(installed.kernel, 3)
    with pytest.raises(ConfigError, match=r"needs the set 'arm64-system': .*e\.g\. kernel; .*devices install arm64-system"):
        open_device("a53-96mb")


def test_a_damaged_sysroot_is_named_as_that(installed: SystemSet) -> None:
    (installed.sysroot.folder / "qemu").unlink()
    with pytest.raises(ConfigError, match=r"it uses the set 'arm64': .*e\.g\. qemu; .*devices install arm64$"):
        open_device("a53-96mb")
    assert installed.remove()
    assert installed.sysroot.folder.exists()


def test_how_a_worker_ended_is_told() -> None:
    assert ended({"ended": 137, "killed": KILLED, "printed": ""}) == (
        "out of memory: killed by the device's kernel when it had 63 MB"
    )
    crawling = "thrashing: it read 1537 MB of its own files again "
    assert ended({"ended": 137, "killed": crawling, "printed": ""}) == f"out of memory: {crawling.strip()}"
    assert ended({"ended": 134, "killed": "", "printed": "terminate called ... what(): std::bad_alloc"}).startswith(
        "out of memory: "
    )
    assert ended({"ended": 1, "killed": "", "printed": "MemoryError"}) == "out of memory: MemoryError"
    assert ended({"ended": 139, "killed": "", "printed": ""}) == "it crashed (SIGSEGV)"
    assert ended({"ended": 1, "killed": "", "printed": "no module"}) == "it crashed (exit code 1: no module)"


class Scripted(QemuSystemDevice):
    """Starts a script on this machine in the place of the computer; it answers as the first program and the worker do."""

    script = ""

    def command(self) -> Sequence[str]:
        return [sys.executable, "-I", "-c", self.script]


#: Says hello; to embed, the first start answers once and dies of the second, each later start answers {then}.
_SCRIPT = """
import pathlib, runpy
serve = runpy.run_path({frames!r})["serve"]
starts = pathlib.Path({starts!r})
starts.write_text(starts.read_text() + "x")
asked = 0
def answer(question, parts):
    global asked
    if question["do"] == "hello":
        return {hello}, []
    asked += 1
    if len(starts.read_text()) == 1 and asked == 1:
        return {{"tensors": None, "embeddings": None, "refused": "not of memory", "peak_kb": 2048}}, []
    if len(starts.read_text()) == 1:
        return {{"host": {{}}, "versions": {{}}, "ended": 137, "killed": {killed!r}, "printed": ""}}, []
    return {then}, []
serve(answer)
"""
_DEAD = f'{{"host": {{}}, "versions": {{}}, "ended": 137, "killed": {KILLED!r}, "printed": ""}}'
_HELLO = '{"host": {}, "versions": {"onnx": "onnxruntime 9"}}'
_FINE = '{"tensors": None, "embeddings": None, "refused": "it ran"}'


@pytest.fixture
def scripted(installed: SystemSet, tmp_path: Path) -> Iterator[Scripted]:
    (tmp_path / "starts").write_text("")
    found = Scripted(load_profile("a53-96mb"))
    yield found
    found.close()


def say(found: Scripted, tmp_path: Path, *, hello: str = _HELLO, then: str = _FINE) -> None:
    found.script = _SCRIPT.format(
        starts=str(tmp_path / "starts"), frames=child_frames.__file__, hello=hello, killed=KILLED, then=then
    )


def test_too_little_memory_is_a_refusal_that_names_it_and_the_mend(scripted: Scripted, bundle: Bundle, tmp_path: Path) -> None:
    say(scripted, tmp_path, then=_DEAD)
    images = ProbeSet.from_bundle(bundle).images[:1]
    first = scripted.embed(bundle, "onnx-int8", "onnx", images, OPTIONS)
    assert first.refused == "not of memory"
    assert (first.host["memory"], first.host["peak_memory"]) == ("96 MB", "2 MB")
    run = scripted.embed(bundle, "onnx-int8", "onnx", images, OPTIONS)
    assert run.embeddings is None
    assert run.refused == (
        "artifacts/model.int8.onnx in onnx on a53-96mb: out of memory: killed by the device's kernel when it had 63 MB; it "
        "needs more than the 96 MB of a53-96mb: use a device with more memory, or an artifact that needs less (int8, or TFLite "
        "instead of ONNX)"
    )
    # It was asked once more, in a computer of its own, before it was refused.
    assert (tmp_path / "starts").read_text() == "xx"


def test_no_artifact_is_refused_for_what_another_left_in_memory(scripted: Scripted, bundle: Bundle, tmp_path: Path) -> None:
    say(scripted, tmp_path)
    assert scripted.embed(bundle, "onnx-int8", "onnx", [], OPTIONS).refused == "not of memory"
    assert scripted.embed(bundle, "onnx-int8", "onnx", [], OPTIONS).refused == "it ran"


def test_a_system_without_room_for_python_is_a_refusal_too(scripted: Scripted, bundle: Bundle, tmp_path: Path) -> None:
    say(scripted, tmp_path, hello=_DEAD)
    run = scripted.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    assert run.refused.startswith("Python and samespace.sdk alone do not fit: out of memory: killed by the device's kernel")
    assert "needs more than the 96 MB" in run.refused


def test_a_crash_that_is_not_of_memory_is_no_refusal_for_memory(scripted: Scripted, bundle: Bundle, tmp_path: Path) -> None:
    say(scripted, tmp_path, then=_DEAD.replace("137", "139").replace(KILLED, ""))
    scripted.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    scripted._end()
    run = scripted.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
    assert "it crashed (SIGSEGV)" in run.refused
    assert "memory" not in run.refused
    say(scripted, tmp_path, hello=_DEAD.replace("137", "1").replace(KILLED, ""))
    scripted._end()
    with pytest.raises(ConfigError, match=r"does not start: it crashed \(exit code 1\)"):
        scripted.embed(bundle, "onnx-int8", "onnx", [], OPTIONS)
