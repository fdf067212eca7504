"""One bundle through all its artifacts on all devices, twice; faults that happen on a device; the install on a fresh machine.

python benchmarks/devices/run.py                        trains and exports the model of benchmarks/export, if it is not there
python benchmarks/devices/run.py --bundle B.samespace   another bundle; its signer must be trusted
python benchmarks/devices/run.py --device host,a53,a76  some devices
python benchmarks/devices/run.py --install              also times the install into an empty cache, downloads included
python benchmarks/devices/run.py --size small           a small training; no figures for documents

Devices that are not installed are installed first; that time is no part of the matrix's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))

from figures import Install, records
from planted import planted_on
from prepare import ROOT, Place, all_artifacts, choose_model, exported, trained

from samespace.edge.devices.profile import load_profile
from samespace.sdk.bundle import Bundle
from samespace.sdk.check.device_process import Task
from samespace.sdk.check.matrix import Matrix
from samespace.sdk.check.matrix_render import matrix_plain
from samespace.sdk.check.matrix_run import check_devices
from samespace.sdk.check.report import Settings
from samespace.sdk.devices import device_names
from samespace.sdk.evidence import write_ledger

#: Devices of the matrix where none are named, those of them that there are; the first of them bears the faults.
DEVICES = ("a53", "a55", "a76", "a710", "a7", "browser", "ios-reference", "host")
#: Time of the install is measured of these two, as a new user would check.
_NEW = ("a53", "a76")
_COMMAND = [sys.executable, "-c", "from samespace.sdk.cli import main; main()"]


def main() -> None:
    """Measure, print, and write the ledger: of the full size to where documents quote it, else into the folder."""
    wanted = _arguments()
    folder = (wanted.output or ROOT / "build" / "export" / wanted.size).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = wanted.bundle or _exported(Place(folder, wanted.size), wanted.run, wanted.model)
    bundle = Bundle.open(path)
    names = wanted.device.split(",") if wanted.device else _there()
    _installed(names)
    install = _install(path) if wanted.install else None
    task = Task(path, settings=Settings(threads=1), seconds=1800)
    first, seconds = _matrix(task, names)
    # In the other order, so beside others: hashes must not depend on it.
    second, again = _matrix(task, list(reversed(names)))
    systems = _systems(names) if wanted.systems is None else [name for name in wanted.systems.split(",") if name]
    whole = _matrix(task, systems)[0] if systems else None
    faulty = next((name for name in names if load_profile(name).runs.kind != "host"), names[0])
    faults = planted_on(faulty, bundle, ["onnx-fp32", "onnx-int8", "tflite-fp32"], wanted.faults)
    target = ROOT / "benchmarks" / "results" if wanted.size == "full" else folder
    matrices = {"first": first, "second": second} | ({"systems": whole} if whole is not None else {})
    found = records(first, second, (seconds, again), whole, faulty, faults, install, wanted.size)
    write_ledger(
        target / "devices.json",
        found,
        model=bundle.manifest.model.name,
        matrices={name: matrix.model_dump(mode="json", exclude={"bundle"}) for name, matrix in matrices.items()},
        faults=faults,
        note="Devices were installed before; only the record devices-install times an install. Emulated time is no latency.",
    )
    for record in found:
        print(f"{record.id}: {record.measured}, bar: {record.bar}, {'holds' if record.holds else record.reason}")


def _exported(place: Place, run: Path | None, model: str | None) -> Path:
    os.environ["SAMESPACE_CONFIG_DIR"] = place.environment["SAMESPACE_CONFIG_DIR"]
    finished = trained(place, run)
    return exported(place, finished, choose_model(finished, model), all_artifacts(), "every")[0].path


def _there() -> list[str]:
    known = device_names()
    return [name for name in DEVICES if name in known]


def _systems(names: list[str]) -> list[str]:
    """Whole systems of a processor that the matrix has in user mode, one of each: the one with most memory."""
    found: dict[str, str] = {}
    for name in device_names():
        base, _, memory = name.rpartition("-")
        size = memory.removesuffix("mb")
        if base in names and size.isdigit() and int(size) > int(found.get(base, "0mb").rpartition("-")[2].removesuffix("mb")):
            found[base] = name
    return list(found.values())


def _installed(names: list[str]) -> None:
    """Install what these devices need, where it is not yet."""
    from samespace.edge.devices.installs import INSTALLS, load_install

    wanted = {str(getattr(load_profile(name).runs, "architecture", "")) for name in names}
    wanted |= {name for name in INSTALLS if name in names}
    for name in INSTALLS:
        if name in wanted:
            load_install(name).install()


def _matrix(task: Task, names: list[str]) -> tuple[Matrix, float]:
    began = time.monotonic()
    check = check_devices(task, names, fresh=True, advance=lambda place: print(f"checked {place}", file=sys.stderr, flush=True))
    print(matrix_plain(check.matrix, check.checks))
    return check.matrix, time.monotonic() - began


def _install(bundle: Path) -> Install:
    """``samespace devices install arm64`` into an empty cache, then the first check, without privileges."""
    plain = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    # As root on a test machine, without what root may do more than others.
    prefix = plain if hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("setpriv") else []
    cache = Path(tempfile.mkdtemp(prefix="samespace-install-"))
    try:
        environment = os.environ | {"SAMESPACE_CACHE_DIR": str(cache)}
        began = time.monotonic()
        done = subprocess.run(
            [*prefix, *_COMMAND, "devices", "install", "arm64"], env=environment, capture_output=True, text=True, timeout=1200
        )
        seconds = time.monotonic() - began
        if done.returncode:
            return Install(seconds, 0.0, (done.stdout + done.stderr)[-400:])
        began = time.monotonic()
        words = ["check", str(bundle), "--device", ",".join(_NEW), "--threads", "1", "--json", str(cache / "check.json")]
        check = subprocess.run([*prefix, *_COMMAND, *words], env=environment, capture_output=True, text=True, timeout=3600)
        ran = (cache / "check.json").is_file()
        return Install(seconds, time.monotonic() - began, "" if ran else (check.stdout + check.stderr)[-400:])
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "small", "ci"), default="full")
    parser.add_argument("--bundle", type=Path, help="a finished bundle; default: train and export one")
    parser.add_argument("--run", type=Path, help="a finished run; default: train one")
    parser.add_argument("--model", help="of the run; default: its largest edge model")
    parser.add_argument("--device", default="", help="names, with commas between; default: all of the matrix")
    parser.add_argument(
        "--systems", help="whole systems to compare with user mode; default: one of each processor; '' for none"
    )
    parser.add_argument("--faults", type=int, default=0, help="plant so many faults only; 0: all")
    parser.add_argument("--install", action="store_true", help="also install into an empty cache, and time it")
    parser.add_argument("--output", type=Path, help="folder to work in; default: build/export/SIZE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
