"""Pictures that are small as files and huge when decoded: what refusing one costs in memory, in a process of its own."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["memory_of", "png"]

#: Prints what became of the picture, and the peaks of resident memory before and after, in bytes.
_CHILD = """
import json, pathlib, sys, warnings
import numpy as np
from samespace.sdk.errors import ImageError
from samespace.sdk.preprocess import Preprocess

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

warnings.simplefilter("ignore")
preprocess = Preprocess(size=32, max_pixels=int(sys.argv[2]))
# Imports and tables are loaded before the first measurement.
for source in (np.zeros((8, 8, 3), np.uint8), pathlib.Path(sys.argv[3]).read_bytes()):
    preprocess(source)
before = peak()
try:
    preprocess(pathlib.Path(sys.argv[1]).read_bytes())
    refused = ""
except ImageError as error:
    refused = str(error)
print(json.dumps({"refused": refused, "bytes": peak() - before}))
"""


def png(width: int, height: int, channels: int = 1) -> bytes:
    """A black PNG of 8 bits a channel, made row by row; 1 channel is grey, 3 are RGB, 4 RGBA."""
    colour = {1: 0, 3: 2, 4: 6}[channels]
    packer = zlib.compressobj(9)
    row = bytes(1 + channels * width)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def memory_of(picture: bytes, max_pixels: int = 50_000_000) -> tuple[str, int]:
    """Preprocess a picture in a fresh process (Linux).

    Returns:
        Why it was refused, empty when it was not; and by how many bytes the peak of resident memory rose.
    """
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / "picture", Path(folder) / "small"]
        paths[0].write_bytes(picture)
        paths[1].write_bytes(png(8, 8))
        command = [sys.executable, "-c", _CHILD, paths[0], str(max_pixels), paths[1]]
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return answer["refused"], answer["bytes"]
