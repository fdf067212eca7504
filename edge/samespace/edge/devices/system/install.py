"""The set ``arm64-system``: kernel, initramfs, and the QEMU that emulates a whole computer. It uses the set ``arm64``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samespace.edge.devices.cache import cache_dir, damage, enough_room, installing, read_record, remove_set, set_folder
from samespace.edge.devices.sysroot import Sysroot, sysroot
from samespace.edge.devices.sysroot.apt import AptRoot, describe_deb
from samespace.edge.devices.sysroot.architectures import PYTHON, SUITE
from samespace.edge.devices.sysroot.commands import run
from samespace.edge.devices.system.initramfs import Entry, device, file, folder, link, modules_in_order, newc
from samespace.edge.devices.system.packages import APPLETS, BUSYBOX, EMULATOR, KERNEL, LIBRARIES, MODULES
from samespace.sdk.cli.progress import Bar, progress
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import digest

__all__ = ["SystemSet", "system_set"]

#: Raised when this file makes something else of the same packages.
_RECIPE = 1
#: Bytes that downloads and folders take while it is built.
_ROOM = 700 << 20
_INIT = Path(__file__).with_name("guest_init.sh")
_ARCHITECTURE = "arm64"


def system_set(name: str = "arm64-system") -> SystemSet:
    """The set, installed or not."""
    return SystemSet(name)


class SystemSet:
    """An :class:`samespace.edge.devices.installs.Installable`: what emulates a whole computer, less its programs.

    Args:
        name: of the set.
    """

    def __init__(self, name: str = "arm64-system") -> None:
        self.name = name
        self.description = "Debian's kernel, an initramfs and QEMU for devices with little memory; uses the set arm64"
        self.sysroot: Sysroot = sysroot(_ARCHITECTURE)
        made_of = (KERNEL, BUSYBOX, MODULES, APPLETS, EMULATOR, LIBRARIES, SUITE, init_script(self.sysroot))
        self.recipe = f"{_RECIPE}-{digest(repr(made_of).encode())[:16]}"

    @property
    def folder(self) -> Path:
        """Where it is when it is installed."""
        return set_folder(self.name)

    @property
    def kernel(self) -> Path:
        """Debian's kernel."""
        return self.folder / "kernel"

    @property
    def initramfs(self) -> Path:
        """Its first file system."""
        return self.folder / "initramfs"

    def qemu(self) -> list[str]:
        """What starts the emulator, with its own libraries and the loader that fits them.

        Raises:
            ConfigError: it is not there.
        """
        return _emulator(self.folder)

    def install(self) -> None:
        """Build it where it is not there and good, and the set that it uses before it."""
        if sys.platform != "linux":
            raise ConfigError(f"{self.name!r} can only be used on Linux; use a container")
        self.sysroot.install()
        lock: dict[str, Any] = {}
        enough_room(self.name, self.recipe, _ROOM)
        with installing(self.name, self.recipe, lock) as new:
            if new is not None:
                with progress(f"install {self.name}", 4) as bar:
                    self._build(new, lock, bar)
                shutil.rmtree(self._downloads, ignore_errors=True)

    def check(self, *, thorough: bool = False) -> str | None:
        """What is wrong with it or with the set that it uses; thorough: and start it."""
        mend = f"install it: samespace devices install {self.name}"
        if wrong := damage(self.name, self.recipe, thorough=thorough):
            return f"{wrong}; {mend}"
        if wrong := self.sysroot.check(thorough=thorough):
            return f"it uses the set {self.sysroot.name!r}: {wrong}"
        if thorough:
            try:
                self._try()
            except ConfigError as error:
                return f"{error}; samespace devices remove {self.name}, then {mend}"
        return None

    def remove(self) -> bool:
        """Remove it with its downloads; the set that it uses stays. Whether there was anything."""
        return remove_set(self.name, self._downloads)

    def details(self) -> Mapping[str, str]:
        """Versions and size of what is installed."""
        record = read_record(self.name)
        if record is None:
            return {}
        versions = {deb["name"]: deb["version"] for deb in record.lock["debs"]}
        kernel = next(version for name, version in versions.items() if name.startswith("linux-image"))
        return {"size": record.size, "kernel": kernel, "qemu": versions[EMULATOR]}

    @property
    def _downloads(self) -> Path:
        return cache_dir() / "downloads" / self.name

    def _build(self, new: Path, lock: dict[str, Any], bar: Bar) -> None:
        # An apt root of its own: what another set has downloaded is not wanted here, and would be removed.
        apt = AptRoot(self._downloads / "apt", _ARCHITECTURE, security=True, own=True)
        apt.update()
        bar.advance(note="packages")
        device_debs = [f"{apt.real(f'{KERNEL}:{_ARCHITECTURE}')}:{_ARCHITECTURE}", f"{BUSYBOX}:{_ARCHITECTURE}"]
        host_debs = [*(f"{name}:{apt.host}" for name in LIBRARIES), f"{EMULATOR}:{apt.host}/{SUITE}-backports"]
        debs = apt.download([*device_debs, *host_debs])
        lock["debs"] = [describe_deb(path) for path in debs]
        bar.advance(note="unpacking")
        unpacked = new / "unpacked"
        for deb, told in zip(debs, lock["debs"], strict=True):
            place = unpacked / ("device" if told["name"].startswith("linux-image") or told["name"] == BUSYBOX else "host")
            place.mkdir(parents=True, exist_ok=True)
            run(["dpkg-deb", "-x", str(deb), str(place)], f"unpacking {deb.name}", seconds=300)
        _take_emulator(unpacked / "host", new)
        (kernel,) = (unpacked / "device" / "boot").glob("vmlinuz-*")
        kernel.rename(new / "kernel")
        (new / "initramfs").write_bytes(newc(first_files(unpacked / "device", init_script(self.sysroot))))
        shutil.rmtree(unpacked)
        run([*_emulator(new), "-version"], "starting QEMU", seconds=60)
        bar.advance(note="recording")

    def _try(self) -> None:
        """Start a system and its worker."""
        from samespace.edge.devices.profile import load_profile
        from samespace.edge.devices.system.device import QemuSystemDevice

        machine = QemuSystemDevice(load_profile("a53-512mb"))
        try:
            machine.start()
        finally:
            machine.close()


def init_script(root: Sysroot) -> str:
    """The first program's text for that sysroot."""
    # In the system the sysroot's folders are linked to where they belong.
    exports = "\n".join(f"export {name}={value}" for name, value in root.variables("", "/sdk").items())
    worker = f"/usr/bin/python{PYTHON[0]}.{PYTHON[1]} -P /sdk/worker.py"
    return _INIT.read_text("utf-8").replace("@EXPORTS@\nmk", f"{exports}\nmk").replace("@WORKER@ <", f"{worker} <")


def first_files(unpacked: Path, script: str) -> list[Entry]:
    """What is in the initramfs, of the device's unpacked packages.

    Raises:
        ConfigError: the kernel lacks a driver.
    """
    modules = next((unpacked / "lib" / "modules").iterdir())
    builtin = [Path(line).stem for line in (modules / "modules.builtin").read_text().split()]
    drivers = modules_in_order(modules, MODULES, builtin)
    return [
        *(folder(name) for name in ("bin", "bundle", "dev", "modules", "proc", "sdk", "sys", "sysroot", "tmp")),
        device("dev/console", 5, 1),
        *(link(name, f"sysroot/{name}") for name in ("etc", "lib", "opt", "usr")),
        file("bin/busybox", (unpacked / "bin" / "busybox").read_bytes(), executable=True),
        *(link(f"bin/{name}", "busybox") for name in APPLETS),
        # Numbered: the shell sorts them, and each must come behind those that it needs.
        *(file(f"modules/{number:02}-{path.name}", path.read_bytes()) for number, path in enumerate(drivers)),
        file("init", script.encode(), executable=True),
    ]


def _take_emulator(unpacked: Path, new: Path) -> None:
    """The emulator and the libraries, without what else their packages have."""
    target = new / "qemu"
    (target / "lib").mkdir(parents=True)
    (unpacked / "usr/bin/qemu-system-aarch64").rename(target / "qemu-system-aarch64")
    for parent in (unpacked / "lib", unpacked / "usr/lib"):
        for found in sorted(parent.glob("*-linux-*/*.so*")):
            if found.is_symlink() or found.is_file():
                found.rename(target / "lib" / found.name)


def _emulator(place: Path) -> list[str]:
    folder = place / "qemu"
    loader = next(iter(sorted((folder / "lib").glob("ld-linux*.so.*"))), None)
    if loader is None:
        raise ConfigError(f"{folder} has no loader; samespace devices remove {place.name}, then install it again")
    return [str(loader), "--library-path", str(folder / "lib"), str(folder / "qemu-system-aarch64")]
