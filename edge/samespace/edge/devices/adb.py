"""Android phones on a cable: the worker on the phone's own processor, by adb and without root.

The phone has no Python of ours: the set ``arm64`` is pushed into a folder of its own below ``/data/local/tmp``, and its Python
is started by the set's own dynamic linker, so that nothing of Android is used but its kernel and its shell. The folder is
removed when the device is closed, and by the phone itself when the worker's input ends because this process died.
"""

from __future__ import annotations

import os
import secrets
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from samespace.edge.devices.profile import DeviceProfile
from samespace.edge.devices.served import ServedDevice
from samespace.edge.devices.sysroot import guest_sdk, sysroot
from samespace.edge.devices.sysroot.architectures import PYTHON
from samespace.sdk.errors import ConfigError

__all__ = ["AdbDevice"]

#: Where a phone's shell, which is not root, may write files and start programs.
_PLACE = "/data/local/tmp"
_TRIPLET = "aarch64-linux-gnu"
#: State of a phone, as ``adb devices`` says it -> what that means.
_STATES = {
    "unauthorized": "does not trust this computer: unlock it, and allow USB debugging when it asks",
    "offline": "is offline: plug it in again, or run: adb reconnect",
    "no permissions": "may not be used by this user: see the udev rules for Android",
}
#: What is asked of a phone, for reports: never what tells one phone from another of its kind.
_PROPERTIES = ("ro.product.cpu.abi", "ro.soc.model", "ro.build.version.release")


class AdbDevice(ServedDevice):
    """A :class:`samespace.sdk.devices.Device` that is a 64-bit Android phone; ``ANDROID_SERIAL`` chooses one of several.

    Args:
        profile: of the kind ``adb``.

    Raises:
        ConfigError: no phone that can be used, no adb, or the set ``arm64`` is not installed.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        super().__init__(profile)
        #: On the phone; empty while nothing is there.
        self._folder = ""
        self._sent: dict[Path, str] = {}
        self._sysroot = sysroot("arm64")
        self._sysroot.require()
        self._serial = _chosen()
        abi, chip, release = (self._shell(f"getprop {name}", seconds=30).strip() for name in _PROPERTIES)
        if not abi.startswith("arm64"):
            raise ConfigError(
                f"the phone is {abi or 'of an unknown kind'}, and the runtimes have wheels for arm64; use another phone"
            )
        self._about = {"processor": chip or "unknown", "system": f"Android {release}"}

    def command(self) -> Sequence[str]:
        """What starts the worker on the phone; first it pushes what that needs."""
        if not self._folder:
            self._push_all()
        root, sdk = f"{self._folder}/root", f"{self._folder}/sdk"
        variables = {**self._sysroot.variables(root, sdk), "TMPDIR": self._folder, "HOME": self._folder}
        python = [
            *("env", "-u", "LD_PRELOAD", *(f"{name}={value}" for name, value in variables.items())),
            *(f"{root}/lib/ld-linux-aarch64.so.1", "--library-path", f"{root}/lib/{_TRIPLET}:{root}/usr/lib/{_TRIPLET}"),
            *(f"{root}/usr/bin/python{PYTHON[0]}.{PYTHON[1]}", "-P", f"{sdk}/worker.py"),
        ]
        # It ends with 0 only when its input has ended: then nobody is left here who would clean up.
        script = f"{shlex.join(python)}; end=$?; [ $end -ne 0 ] || rm -rf {self._folder}; exit $end"
        # The child's environment has what every program gets; where the server listens is adb's own.
        own = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("ANDROID_", "ADB_"))]
        return ["env", *own, "adb", "-s", self._serial, "shell", "-T", script]

    def inside(self, path: Path) -> str:
        """Where the phone has that file or folder; it is pushed when it is first asked for."""
        path = path.resolve()
        if path not in self._sent:
            target = f"{self._folder}/{len(self._sent)}-{path.name}"
            self._adb("push", str(path), target, seconds=600)
            self._sent[path] = target
        return self._sent[path]

    def damage(self) -> str | None:
        """What is wrong with the set, or that the phone or its folder is gone."""
        if wrong := self._sysroot.check():
            return wrong
        if _phones().get(self._serial) != "device":
            return f"the phone is no longer there{self._left()}"
        if self._folder and not self._shell(f"ls -d {self._folder}/root 2>/dev/null; true", seconds=30).strip():
            self._folder = ""
            return "what was pushed to the phone is no longer there"
        return None

    def describe(self) -> Mapping[str, str]:
        """The phone's chip and its Android."""
        return self._about

    def close(self) -> None:
        """End the worker and remove what was pushed.

        Raises:
            ConfigError: it cannot be removed; says where it lies.
        """
        super().close()
        if self._folder:
            self._shell(f"rm -rf {self._folder}", seconds=120)
            self._folder = ""

    def _push_all(self) -> None:
        sdk = guest_sdk()
        self._folder, self._sent = f"{_PLACE}/samespace-{secrets.token_hex(6)}", {}
        self._shell(f"mkdir -p {self._folder}/root {self._folder}/sdk", seconds=60)
        with tempfile.TemporaryDirectory(prefix="samespace-adb-") as here:
            for name, source in (("root", self._sysroot.root), ("sdk", sdk)):
                # In an archive, since adb pushes no symbolic links.
                archive, there = Path(here, f"{name}.tar"), f"{self._folder}/{name}.tar"
                subprocess.run(["tar", "-cf", str(archive), "-C", str(source), "."], check=True, timeout=300)
                self._adb("push", str(archive), there, seconds=900)
                self._shell(f"tar -xf {there} -C {self._folder}/{name} && rm {there}", seconds=600)
                archive.unlink()

    def _shell(self, script: str, *, seconds: float) -> str:
        return self._adb("shell", script, seconds=seconds)

    def _adb(self, *words: str, seconds: float) -> str:
        try:
            return _adb("-s", self._serial, *words, seconds=seconds)
        except ConfigError as error:
            raise ConfigError(f"device {self.name!r}: {error}{self._left()}") from None

    def _left(self) -> str:
        return f"; what was pushed lies on the phone: adb shell rm -rf {self._folder}" if self._folder else ""


def _chosen() -> str:
    """The serial number of the phone to use."""
    found, wanted = _phones(), os.environ.get("ANDROID_SERIAL")
    if wanted is None and len(found) > 1:
        raise ConfigError(f"{len(found)} phones are plugged in: set ANDROID_SERIAL to one of those that 'adb devices' lists")
    serial = wanted or next(iter(found), None)
    if serial is None:
        raise ConfigError("adb lists no phone: plug one in, and switch on USB debugging in its developer options")
    if serial not in found:
        raise ConfigError("adb does not list the phone that ANDROID_SERIAL names; see: adb devices")
    if (state := found[serial]) != "device":
        why = next((text for name, text in _STATES.items() if state.startswith(name)), f"is in the state {state!r}")
        raise ConfigError(f"the phone {why}")
    return serial


def _phones() -> dict[str, str]:
    """Serial number -> state of what ``adb devices`` lists; ``device`` is one that can be used."""
    lines = (line.partition("\t") for line in _adb("devices", seconds=30).splitlines())
    return {serial: state.strip() for serial, tab, state in lines if tab}


def _adb(*words: str, seconds: float) -> str:
    """Run adb to its end; what it printed.

    Raises:
        ConfigError: there is no adb, it failed, or it took too long.
    """
    what = next(word for word in words if word in ("devices", "push", "shell"))
    try:
        done = subprocess.run(
            ["adb", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds
        )
    except FileNotFoundError:
        raise ConfigError("phones need the program 'adb', which is not installed: apt install adb") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"adb {what} gave no answer within {seconds:g} s; is the phone still plugged in?") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        if "No space left" in said:
            raise ConfigError("the phone's storage is full; make room for 700 MB there")
        raise ConfigError(f"adb {what} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout
