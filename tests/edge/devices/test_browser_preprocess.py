"""preprocess.js under Node: PNG decoding, orientation and resizing give the very bytes that samespace.sdk gives."""

from __future__ import annotations

import json
import runpy
import shutil
import struct
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import PngImagePlugin

from samespace.sdk.errors import ImageError
from samespace.sdk.preprocess import Preprocess

pictures = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("browser_pictures.py"))))
PAGE = Path(str(files("samespace.edge.devices.browser") / "page"))
#: Reads [[file, spec], ...]; writes one line for each: the tensor in hexadecimal, or what was wrong.
SCRIPT = """
import fs from "node:fs";
const { preprocess } = await import(process.argv[2]);
const lines = [];
for (const [file, spec] of JSON.parse(fs.readFileSync(0))) {
  try {
    lines.push({ tensor: Buffer.from(await preprocess(fs.readFileSync(file), spec)).toString("hex") });
  } catch (error) {
    lines.push({ error: error.message });
  }
}
fs.writeFileSync(1, JSON.stringify(lines));
"""
SPEC = Preprocess(size=32)


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    assert found, "these tests need Node.js, which comes with the npm that 'make test' asks for"
    return found


def in_node(node: str, folder: Path, jobs: Sequence[tuple[bytes, Preprocess]]) -> list[dict[str, str]]:
    script = folder / "run.mjs"
    script.write_text(SCRIPT)
    asked = []
    for number, (picture, spec) in enumerate(jobs):
        (folder / str(number)).write_bytes(picture)
        asked.append([str(folder / str(number)), json.loads(spec.model_dump_json())])
    command = [node, str(script), (PAGE / "preprocess.js").as_uri()]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def assert_same(node: str, folder: Path, jobs: Sequence[tuple[str, bytes, Preprocess]]) -> None:
    for (name, picture, spec), found in zip(jobs, in_node(node, folder, [job[1:] for job in jobs]), strict=True):
        wanted = spec(picture)
        assert "error" not in found, (name, found)
        got = np.frombuffer(bytes.fromhex(found["tensor"]), np.uint8).reshape(wanted.shape)
        np.testing.assert_array_equal(got, wanted, err_msg=f"{name} {spec}")


def refusal(node: str, folder: Path, picture: bytes, spec: Preprocess = SPEC) -> str:
    (found,) = in_node(node, folder, [(picture, spec)])
    return found.get("error", "it was not refused")


def test_every_kind_of_png_is_decoded_to_the_same_bytes(node: str, tmp_path: Path) -> None:
    specs = [Preprocess(size=40, fit="stretch"), Preprocess(size=40, background=(10, 200, 77))]
    assert_same(node, tmp_path, [(name, data, spec) for name, data in pictures.all_pngs() for spec in specs])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about the odd ones
def test_every_orientation_is_turned_alike(node: str, tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf tiff:Orientation="6"/>')
    turned = [*pictures.all_turned_pngs(), ("xmp", pictures.saved(pictures.scene(30, 20), "PNG", pnginfo=text))]
    big_endian = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 8, 0) + bytes(4)
    two = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 2, 6) + bytes(4)
    far = b"II*\0" + struct.pack("<IHHHIII3H", 8, 1, 0x0112, 3, 3, 26, 0, 5, 6, 6)
    one_byte = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 1, 1, 6, 0)
    blocks = (("big-endian", big_endian), ("two values", two), ("three", far), ("beyond", far[:-1]), ("a byte", one_byte))
    for name, block in (*blocks, ("nonsense", b"??"), ("cut", big_endian[:9])):
        turned.append((name, pictures.saved(pictures.scene(30, 20), "PNG", exif=block)))
    assert_same(node, tmp_path, [(name, data, SPEC) for name, data in turned])


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_every_size_is_resized_alike(fit: str, node: str, tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    sizes = [(1, 1), (1, 300), (300, 1), (640, 427), (32, 32), (33, 31), *random.integers(1, 200, (20, 2)).tolist()]
    jobs = []
    for number, (width, height) in enumerate(sizes):
        spec = Preprocess(size=int(random.integers(8, 120)), fit=fit, background=(1, 2, 3))
        jobs.append((f"{width}x{height}", pictures.saved(pictures.scene(width, height, number), "PNG"), spec))
    assert_same(node, tmp_path, jobs)


def test_what_is_refused_is_named(node: str, tmp_path: Path) -> None:
    image = pictures.scene(40, 30)
    whole = pictures.saved(image, "PNG")
    assert "WebP" in refusal(node, tmp_path, pictures.saved(image, "WEBP"))
    assert "GIF" in refusal(node, tmp_path, pictures.saved(image, "GIF"))
    assert "not an image" in refusal(node, tmp_path, b"what is this?")
    assert "not an image" in refusal(node, tmp_path, b"")
    assert "1200 is more" not in refusal(node, tmp_path, whole)
    assert "40x30 is more than 1199 pixels" in refusal(node, tmp_path, whole, Preprocess(size=32, max_pixels=1199))
    assert "this is no browser" in refusal(node, tmp_path, pictures.saved(image, "JPEG"))
    assert "CMYK" in refusal(node, tmp_path, pictures.saved(image.convert("CMYK"), "JPEG"))
    assert "cut short" in refusal(node, tmp_path, pictures.saved(image, "JPEG")[:-40])


@pytest.mark.parametrize("keep", [9, 20, 40, 200, -40])
def test_a_png_that_was_cut_short_is_refused_as_in_the_sdk(keep: int, node: str, tmp_path: Path) -> None:
    picture = pictures.saved(pictures.scene(40, 30), "PNG")[:keep]
    with pytest.raises(ImageError):
        SPEC(picture)
    assert "broken image" in refusal(node, tmp_path, picture)


def test_a_changed_byte_is_refused_as_in_the_sdk(node: str, tmp_path: Path) -> None:
    picture = bytearray(pictures.saved(pictures.scene(40, 30), "PNG"))
    picture[len(picture) // 2] ^= 1
    with pytest.raises(ImageError):
        SPEC(bytes(picture))
    assert "wrong checksum of IDAT" in refusal(node, tmp_path, bytes(picture))
