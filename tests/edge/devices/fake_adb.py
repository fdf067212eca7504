"""adb as far as the device uses it, and a phone that is a folder: commands run here, in a shell.

``adb`` starts this file with the folder of a fake as its first argument. In there: ``phones.json`` says what is plugged in,
``properties.json`` what getprop says, ``full`` that the storage is full, ``shells`` lists the processes of ``shell -T``,
and ``before`` is put before the set's dynamic linker. Paths are this machine's: the tests give the device a folder of theirs.
"""

import json
import os
import shutil
import sys
from pathlib import Path

LINKER = "/lib/ld-linux-aarch64.so.1"


def main(fake: Path, words: list[str]) -> None:
    phones = json.loads((fake / "phones.json").read_text())
    if words == ["devices"]:
        print("List of devices attached")
        for serial, state in phones.items():
            print(f"{serial}\t{state}")
        return
    if words[0] == "-s":
        if phones.get(words[1]) != "device":
            sys.exit(f"adb: device '{words[1]}' not found")
        words = words[2:]
    if words[0] == "push":
        if (fake / "full").exists():
            sys.exit(f"adb: error: failed to copy '{words[1]}' to '{words[2]}': remote No space left on device")
        source, target = Path(words[1]), Path(words[2])
        shutil.copytree(source, target, symlinks=True) if source.is_dir() else shutil.copyfile(source, target)
        return
    script = " ".join(word for word in words[1:] if word != "-T")
    if script.startswith("getprop "):
        print(json.loads((fake / "properties.json").read_text())[script.removeprefix("getprop ")])
        return
    if "-T" in words:
        os.setsid()  # so that all that runs there can be ended at once: the cable is taken out
        with (fake / "shells").open("a") as file:
            file.write(f"{os.getpid()}\n")
    before = (fake / "before").read_text() if (fake / "before").exists() else ""
    words = [f"{before} {word}" if word.endswith(LINKER) else word for word in script.split(" ")]
    os.execvp("sh", ["sh", "-c", " ".join(words)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
