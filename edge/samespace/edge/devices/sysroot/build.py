"""Building a sysroot, and what may be asked of it afterwards."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samespace.edge.devices.cache import cache_dir, damage, enough_room, installing, read_record, remove_set, set_folder
from samespace.edge.devices.sysroot.apt import AptRoot, describe_deb
from samespace.edge.devices.sysroot.architectures import ARCHITECTURES, PYTHON, SUITE, Architecture
from samespace.edge.devices.sysroot.commands import run
from samespace.edge.devices.sysroot.guest import compile_python, guest_sdk, remove_old_guests
from samespace.edge.devices.sysroot.wheels import describe_wheel, download_wheels, unpack_wheel
from samespace.sdk.cli.progress import Bar, progress
from samespace.sdk.errors import ConfigError
from samespace.sdk.identity import digest

__all__ = ["Sysroot", "sysroot"]

#: Raised when this file makes something else of the same packages.
_RECIPE = 1
#: Bytes that downloads and folders take while it is built.
_ROOM = 600 << 20
#: Below the unpacked packages: nothing that a device needs.
_LEFT_OUT = (
    *(
        f"usr/share/{name}"
        for name in ("doc", "man", "locale", "lintian", "bash-completion", "apport", "bug", "icons", "glib-2.0")
    ),
    *(f"usr/lib/python3.11/{name}" for name in ("ensurepip", "lib2to3", "idlelib", "test", "turtledemo", "pydoc_data")),
)


def sysroot(name: str) -> Sysroot:
    """The sysroot of that architecture, installed or not."""
    return Sysroot(ARCHITECTURES[name])


class Sysroot:
    """An :class:`samespace.edge.devices.installs.Installable`: a Debian in a folder, and the QEMU that runs its programs.

    Args:
        architecture: what it consists of.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.name = architecture.name
        self.description = f"Debian {SUITE}, Python {PYTHON[0]}.{PYTHON[1]} and the runtimes for {self.name}, with QEMU"
        self.recipe = f"{_RECIPE}-{digest(repr(architecture).encode())[:16]}"

    @property
    def folder(self) -> Path:
        """Where it is when it is installed."""
        return set_folder(self.name)

    @property
    def root(self) -> Path:
        """What is ``/`` to the programs of the device."""
        return self.folder / "root"

    @property
    def qemu(self) -> Path:
        """The emulator of one program."""
        return self.folder / "qemu"

    def python_path(self, root: str, sdk: str) -> list[str]:
        """Folders of packages, as the device calls them.

        Args:
            root: how it calls the sysroot's root.
            sdk: how it calls :func:`~samespace.edge.devices.sysroot.guest.guest_sdk`.
        """
        return [sdk, f"{root}/opt/site", f"{root}/usr/lib/python3/dist-packages"]

    def install(self) -> None:
        """Build it where it is not there and good; see :class:`~samespace.edge.devices.installs.Installable`."""
        if sys.platform != "linux":
            raise ConfigError(f"{self.name!r} can only be used on Linux: QEMU's user mode is there only; use a container")
        lock: dict[str, Any] = {}
        enough_room(self.name, self.recipe, _ROOM)
        with installing(self.name, self.recipe, lock) as new:
            if new is not None:
                try:
                    with progress(f"install {self.name}", 5) as bar:
                        self._build(new, lock, bar)
                except zipfile.BadZipFile as error:
                    shutil.rmtree(self._downloads, ignore_errors=True)
                    raise ConfigError(f"a downloaded wheel is damaged ({error}); it was removed, try again") from None
                shutil.rmtree(self._downloads, ignore_errors=True)
        remove_old_guests()
        guest_sdk()

    def check(self, *, thorough: bool = False) -> str | None:
        """What is wrong with it; see :class:`~samespace.edge.devices.installs.Installable`."""
        mend = f"install it: samespace devices install {self.name}"
        if wrong := damage(self.name, self.recipe, thorough=thorough):
            return f"{wrong}; {mend}"
        if thorough:
            try:
                run([*self.python(self.root), "-c", "import PIL.Image, numpy, pydantic"], f"starting {self.name}", seconds=120)
            except ConfigError as error:
                return f"{error}; samespace devices remove {self.name}, then {mend}"
        return None

    def require(self) -> None:
        """Look whether it can be used, which takes a moment.

        Raises:
            ConfigError: it cannot; says what to do.
        """
        if wrong := self.check():
            raise ConfigError(wrong)

    def remove(self) -> bool:
        """Remove it with its downloads; whether there was anything."""
        return remove_set(self.name, self._downloads)

    def details(self) -> Mapping[str, str]:
        """Versions and size of what is installed."""
        record = read_record(self.name)
        if record is None:
            return {}
        wanted = ("numpy", "pillow", "onnxruntime", "ai-edge-litert", "tflite-runtime")
        found = {wheel["name"]: wheel["version"] for wheel in record.lock["wheels"] if wheel["name"] in wanted}
        qemu = next(deb["version"] for deb in record.lock["debs"] if deb["name"].startswith("qemu-user"))
        return {"size": record.size, "qemu": qemu, **found}

    def python(self, root: Path, cpu: str = "max", sdk: Path | None = None) -> list[str]:
        """What starts the device's Python by user-mode emulation.

        Args:
            root: of the sysroot.
            cpu: QEMU's name of the processor.
            sdk: from :func:`~samespace.edge.devices.sysroot.guest.guest_sdk`.
        """
        variables = self.variables(str(root), str(sdk) if sdk else str(root))
        told = [part for name, value in variables.items() for part in ("-E", f"{name}={value}")]
        qemu = [str(root.parent / "qemu"), "-L", str(root), "-cpu", cpu, "-U", "LD_LIBRARY_PATH", *told]
        return [*qemu, f"{root}/usr/bin/python{PYTHON[0]}.{PYTHON[1]}", "-P"]

    def variables(self, root: str, sdk: str) -> dict[str, str]:
        """The device's environment.

        Args:
            root: how it calls the sysroot's root.
            sdk: how it calls :func:`~samespace.edge.devices.sysroot.guest.guest_sdk`.
        """
        return {
            "PYTHONHOME": f"{root}/usr",
            "PYTHONPATH": ":".join(self.python_path(root, sdk)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONNOUSERSITE": "1",
            "PYTHONHASHSEED": "0",
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ORT_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }

    @property
    def _downloads(self) -> Path:
        return cache_dir() / "downloads" / self.name

    def _build(self, new: Path, lock: dict[str, Any], bar: Bar) -> None:
        debs, qemu = self._packages(bar)
        bar.advance(note="wheels")
        found = download_wheels(self.architecture, self._downloads / "wheels")
        lock["debs"] = [describe_deb(path) for path in [*debs, qemu]]
        lock["wheels"] = [describe_wheel(path) for path in found]
        root = new / "root"
        root.mkdir()
        bar.advance(note="unpacking")
        for deb in debs:
            run(["dpkg-deb", "-x", str(deb), str(root)], f"unpacking {deb.name}", seconds=120)
        self._take_qemu(qemu, new)
        for wheel in found:
            unpack_wheel(wheel, root / "opt" / "site")
        self._tidy(root)
        bar.advance(note="byte-compiling")
        compile_python([root], self.python(root))
        bar.advance(note="recording")

    def _packages(self, bar: Bar) -> tuple[list[Path], Path]:
        """Files of the device's packages, and of QEMU for this machine."""
        apt = AptRoot(self._downloads / "apt", self.name, security=self.architecture.security)
        apt.update()
        bar.advance(note="packages")
        wanted = [f"{package}:{self.name}" for package in self.architecture.packages]
        # The release's own QEMU is too old: it shows the host's processor to the device, and knows fewer ARM ones.
        debs = apt.download([*wanted, f"qemu-user:{apt.host}/{SUITE}-backports"])
        qemu = next(path for path in debs if path.name.startswith("qemu-user_"))
        return [path for path in debs if path != qemu], qemu

    def _take_qemu(self, deb: Path, new: Path) -> None:
        # One of the many emulators in it.
        unpacked, program = new / "qemu-package", f"./usr/bin/{self.architecture.qemu}"
        unpacked.mkdir()
        script = 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" "$3"'
        run(["sh", "-c", script, "sh", str(deb), str(unpacked), program], f"unpacking {deb.name}", seconds=120)
        (unpacked / program).rename(new / "qemu")
        shutil.rmtree(unpacked)

    def _tidy(self, root: Path) -> None:
        for name in (*_LEFT_OUT, f"usr/lib/{self.architecture.triplet}/gconv"):
            shutil.rmtree(root / name, ignore_errors=True)
        for name, target in self.architecture.links.items():
            link = root / "usr" / "lib" / self.architecture.triplet / name
            link.unlink(missing_ok=True)
            link.symlink_to(target)
