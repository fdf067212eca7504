"""Preprocessing: a slow second implementation that agrees bit for bit, and every kind of picture, good and bad."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from pydantic import ValidationError

from samespace.sdk.errors import ImageError
from samespace.sdk.preprocess import Preprocess

Pixels = npt.NDArray[np.uint8]

# --- the second implementation: plain arithmetic, no Pillow ---------------------------------------

PRECISION_BITS = 32 - 8 - 2


def slow_coefficients(length: int, target: int) -> list[tuple[int, list[int]]]:
    """For each target pixel: the first source pixel, and the weights in units of 2**-22."""
    scale = length / target
    support = max(scale, 1.0)
    rows = []
    for position in range(target):
        centre = (position + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(length, int(centre + support + 0.5))
        weights = [max(0.0, 1.0 - abs((source - centre + 0.5) / support)) for source in range(first, last)]
        total = sum(weights)
        rows.append((first, [int(0.5 + weight / total * 2**PRECISION_BITS) for weight in weights]))
    return rows


def slow_pass(pixels: Pixels, target: int) -> Pixels:
    """Resize the second axis of ``(h, w, 3)``."""
    result = np.empty((pixels.shape[0], target, 3), np.uint8)
    for position, (first, weights) in enumerate(slow_coefficients(pixels.shape[1], target)):
        window = pixels[:, first : first + len(weights)].astype(np.int64)
        total = 2 ** (PRECISION_BITS - 1) + sum(weight * window[:, i] for i, weight in enumerate(weights))
        result[:, position] = np.clip(total >> PRECISION_BITS, 0, 255)
    return result


def slow_resize(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[1] != width:
        pixels = slow_pass(pixels, width)
    if pixels.shape[0] != height:
        pixels = slow_pass(pixels.transpose(1, 0, 2), height).transpose(1, 0, 2)
    return pixels


def slow_preprocess(pixels: Pixels, spec: Preprocess) -> Pixels:
    """Resize, then crop or pad ``(h, w, 3)``."""
    size, (height, width) = spec.size, pixels.shape[:2]
    if spec.fit == "stretch":
        return slow_resize(pixels, size, size)
    edge = (min if spec.fit == "crop" else max)(width, height)
    new_width, new_height = (max(1, int(length * size / edge + 0.5)) for length in (width, height))
    pixels = slow_resize(pixels, new_width, new_height)
    if spec.fit == "crop":
        left, top = (new_width - size) // 2, (new_height - size) // 2
        return pixels[top : top + size, left : left + size]
    left, top = (size - new_width) // 2, (size - new_height) // 2
    canvas = np.empty((size, size, 3), np.uint8)
    canvas[:] = spec.background
    canvas[top : top + new_height, left : left + new_width] = pixels
    return canvas


def slow_upright(pixels: Pixels, orientation: int) -> Pixels:
    """EXIF 2.32, 4.6.4 A: what row 0 and column 0 of the stored picture are in the visible one."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


# --- helpers --------------------------------------------------------------------------------------


def picture(height: int = 30, width: int = 40, seed: int = 1) -> Pixels:
    """Smooth colours with noise: neither a resize nor a flip leaves it as it was."""
    generator = np.random.default_rng(seed)
    ramp = np.stack(np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 150, height)), -1)
    colours = np.concatenate([ramp, 255 - ramp[..., :1]], -1) + generator.normal(0, 25, (height, width, 3))
    return colours.clip(0, 255).astype(np.uint8)


def encode(image: Image.Image | Pixels, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


EXACT = Preprocess(size=32, fit="stretch")

# --- agreement ------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    size=st.integers(8, 64),
    fit=st.sampled_from(["stretch", "crop", "pad"]),
    background=st.tuples(*[st.integers(0, 255)] * 3),
    seed=st.integers(0, 2**32 - 1),
    style=st.sampled_from(["noise", "black and white", "smooth"]),
)
@example(height=1, width=1, size=8, fit="crop", background=(0, 0, 0), seed=0, style="noise")
@example(height=1, width=150, size=64, fit="crop", background=(0, 0, 0), seed=0, style="noise")
@example(height=150, width=1, size=64, fit="pad", background=(9, 8, 7), seed=0, style="black and white")
@example(height=32, width=32, size=32, fit="pad", background=(0, 0, 0), seed=0, style="noise")
def test_agrees_bit_for_bit_with_a_second_implementation(
    height: int, width: int, size: int, fit: str, background: tuple[int, int, int], seed: int, style: str
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    if style == "black and white":
        pixels = (pixels > 127).astype(np.uint8) * 255
    elif style == "smooth":
        pixels = picture(height, width, seed)
    spec = Preprocess.model_validate({"size": size, "fit": fit, "background": background})
    result = spec(pixels)
    assert result.dtype == np.uint8
    assert result.flags.writeable
    np.testing.assert_array_equal(result, slow_preprocess(pixels, spec))


def test_a_large_reduction_agrees_too() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (1201, 1607, 3), np.uint8)
    spec = Preprocess(size=96, fit="crop")
    np.testing.assert_array_equal(spec(pixels), slow_preprocess(pixels, spec))


def test_the_comparison_would_notice_a_resize_without_antialias() -> None:
    pixels = picture(90, 120)
    image, method = Image.fromarray(pixels), Image.Resampling.BILINEAR
    point_sampled = image.transform((32, 32), Image.Transform.EXTENT, (0, 0, 120, 90), method)
    two_steps = image.resize((32, 32), method, reducing_gap=1.0)
    columns_first = image.resize((120, 32), method).resize((32, 32), method)
    for other in (point_sampled, two_steps, columns_first):
        assert (np.asarray(other) != slow_preprocess(pixels, EXACT)).any()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientations(orientation: int, kind: str) -> None:
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encode(picture(), kind, exif=exif(orientation), **options)
    stored = np.asarray(Image.open(io.BytesIO(encode(picture(), kind, **options))).convert("RGB"))
    expected = slow_preprocess(slow_upright(stored, orientation), EXACT)
    np.testing.assert_array_equal(EXACT(data), expected)
    np.testing.assert_array_equal(EXACT(Image.open(io.BytesIO(data))), expected)


def test_all_orientations_differ() -> None:
    results = [EXACT(encode(picture(), exif=exif(orientation))).tobytes() for orientation in range(1, 9)]
    assert len(set(results)) == 8


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    np.testing.assert_array_equal(EXACT(encode(picture(), exif=exif(orientation))), EXACT(picture()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_cost_the_picture() -> None:
    plain, broken = encode(picture(), "JPEG"), encode(picture(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff rubbish")
    np.testing.assert_array_equal(EXACT(broken), EXACT(plain))


# --- colour ---------------------------------------------------------------------------------------


def test_grey_is_repeated() -> None:
    grey = picture()[..., 0]
    expected = slow_preprocess(np.repeat(grey[..., None], 3, axis=2), EXACT)
    for source in (grey, Image.fromarray(grey), encode(grey)):
        np.testing.assert_array_equal(EXACT(source), expected)


def test_one_bit_pictures_are_black_and_white() -> None:
    bits = picture()[..., 0] > 100
    expected = slow_preprocess(np.repeat(bits[..., None], 3, axis=2).astype(np.uint8) * 255, EXACT)
    np.testing.assert_array_equal(EXACT(encode(Image.fromarray(bits))), expected)


def slow_over(values: Pixels, alpha: Pixels, background: tuple[int, int, int]) -> Pixels:
    """(value a + background (255 - a)) / 255, rounded to nearest."""
    a = alpha.astype(int)[..., None]
    total = values.astype(int) * a + np.array(background) * (255 - a)
    return ((2 * total + 255) // 510).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_the_background(mode: str) -> None:
    spec = Preprocess(size=32, fit="stretch", background=(10, 200, 90))
    values, alpha = picture(), picture(seed=2)[..., 0]
    values = values if mode == "RGBA" else np.repeat(values[..., :1], 3, axis=2)
    channels = [*np.moveaxis(values, -1, 0), alpha] if mode == "RGBA" else [values[..., 0], alpha]
    image = Image.merge(mode, [Image.fromarray(channel) for channel in channels])
    np.testing.assert_array_equal(spec(encode(image)), slow_preprocess(slow_over(values, alpha, spec.background), spec))


def test_premultiplied_alpha() -> None:
    spec = Preprocess(size=32, fit="stretch", background=(10, 200, 90))
    rgba = Image.fromarray(np.dstack([picture(), picture(seed=2)[..., :1]]))
    premultiplied = rgba.convert("RGBa")
    np.testing.assert_array_equal(spec(premultiplied), spec(premultiplied.convert("RGBA")))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_palette_with_a_transparent_colour(kind: str) -> None:
    spec = Preprocess(size=32, fit="stretch", background=(1, 2, 3))
    indices = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 3
    image = Image.frombytes("P", (32, 32), indices.tobytes())
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(image.convert("RGBA") if kind == "WEBP" else image, kind, transparency=1, **options)
    if kind == "WEBP":
        rgba = np.array(Image.open(io.BytesIO(data)).convert("RGBA"))
        rgba[indices == 1, 3] = 0
        data = encode(rgba, kind, lossless=True, exact=True)
    colours = np.array([[255, 0, 0], [1, 2, 3], [0, 0, 255]], np.uint8)
    np.testing.assert_array_equal(spec(data), colours[indices])


def test_palette_with_partial_transparency() -> None:
    spec = Preprocess(size=32, fit="stretch", background=(0, 0, 100))
    indices = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 3
    image = Image.frombytes("P", (32, 32), indices.tobytes())
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    image.putpalette(palette.tobytes())
    alphas = np.array([0, 128, 255], np.uint8)
    expected = slow_over(palette[indices], alphas[indices], spec.background)
    np.testing.assert_array_equal(spec(encode(image, transparency=alphas.tobytes())), expected)


def test_one_transparent_colour_of_a_picture_without_palette() -> None:
    spec = Preprocess(size=32, fit="stretch", background=(1, 2, 3))
    pixels = np.where(np.indices((32, 32)).sum(0)[..., None] % 2, np.uint8([9, 9, 9]), np.uint8([50, 60, 70]))
    expected = np.where((pixels == 9).all(-1)[..., None], np.uint8([1, 2, 3]), pixels)
    np.testing.assert_array_equal(spec(encode(pixels, transparency=(9, 9, 9))), expected)


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = (np.arange(32 * 32, dtype=np.uint32).reshape(32, 32) * 64).astype(np.uint16)
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    for data in (encode(Image.fromarray(values)), encode(Image.fromarray(values), "TIFF"), Image.fromarray(values)):
        np.testing.assert_array_equal(EXACT(data), expected)


def test_sixteen_bits_with_a_transparent_value() -> None:
    spec = Preprocess(size=32, fit="stretch", background=(1, 2, 3))
    values = (np.arange(32 * 32, dtype=np.uint32).reshape(32, 32) * 64).astype(np.uint16)
    result = spec(encode(Image.fromarray(values), transparency=64 * 500))
    assert (result == (1, 2, 3)).all(-1).sum() == 1
    assert tuple(result[500 // 32, 500 % 32]) == (1, 2, 3)


def test_cmyk() -> None:
    cmyk = Image.fromarray(picture()).convert("CMYK")
    ink = np.asarray(cmyk).astype(int)
    rgb = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    result = EXACT(encode(cmyk, "TIFF")).astype(int)
    assert np.abs(result - slow_preprocess(np.rint(rgb).astype(np.uint8), EXACT)).max() <= 1
    np.testing.assert_array_equal(EXACT(cmyk), EXACT(encode(cmyk, "TIFF")))
    jpeg = EXACT(encode(cmyk, "JPEG", quality=95)).astype(int)
    assert np.abs(jpeg - result).mean() < 8  # and not the negative, which an ignored Adobe marker would give


def test_the_first_frame_of_an_animation_counts() -> None:
    first, second = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    for kind in ("GIF", "PNG", "WEBP"):
        data = encode(first, kind, save_all=True, append_images=[second], **({"lossless": True} if kind == "WEBP" else {}))
        assert (EXACT(data) == (255, 0, 0)).all()


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        EXACT(Image.new("F", (4, 4)))


# --- sources --------------------------------------------------------------------------------------


def test_path_bytes_pil_and_array_of_the_same_picture_agree(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encode(picture()))
    (tmp_path / "link.png").symlink_to(path)
    sources = [
        path,
        str(path),
        tmp_path / "link.png",
        path.read_bytes(),
        Image.open(path),
        Image.fromarray(picture()),
        picture(),
    ]
    expected = slow_preprocess(picture(), EXACT)
    for result in EXACT.batch(sources):
        np.testing.assert_array_equal(result, expected)


def test_arrays_of_any_memory_layout_agree() -> None:
    bgr = np.ascontiguousarray(picture()[..., ::-1])
    for view in (bgr[..., ::-1], np.asfortranarray(picture()), np.repeat(picture(), 2, axis=0)[::2]):
        np.testing.assert_array_equal(EXACT(view), EXACT(picture()))


def test_the_callers_picture_is_left_as_it_was() -> None:
    image = Image.fromarray(picture())
    image.getexif()[ExifTags.Base.Orientation] = 6
    before = image.tobytes()
    EXACT(image)
    assert image.tobytes() == before
    assert image.getexif()[ExifTags.Base.Orientation] == 6
    array = picture()
    EXACT(array)
    np.testing.assert_array_equal(array, picture())


def test_no_pictures_make_an_empty_batch() -> None:
    assert EXACT.batch([]).shape == (0, 32, 32, 3)
    assert EXACT.batch([]).dtype == np.uint8


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), bool),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
    ],
)
def test_arrays_of_another_dtype_or_shape_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"uint8, \(h, w, 3\) in RGB order"):
        EXACT(array)


def test_an_array_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="no pixel"):
        EXACT(np.zeros((0, 8, 3), np.uint8))


@pytest.mark.parametrize("source", [None, 7, [1, 2], io.BytesIO()])
def test_what_is_no_picture_at_all_is_refused(source: object) -> None:
    with pytest.raises(ImageError, match="give a path, encoded bytes"):
        EXACT(source)  # type: ignore[arg-type]


# --- bad files ------------------------------------------------------------------------------------


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        EXACT(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="neither a file nor a link to one"):
        EXACT(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        EXACT("a\0b.png")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, I am text\n" * 100,
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
    ids=["empty", "text", "png start", "jpeg start", "gif start", "postscript"],
)
def test_bytes_that_are_no_picture(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(ImageError, match="remove it or save it again"):
            EXACT(source)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files(kind: str) -> None:
    data = encode(picture(60, 80), kind)
    with pytest.raises(ImageError):
        EXACT(data[: len(data) // 2])


def test_a_truncated_picture_that_pil_opened_lazily() -> None:
    data = encode(picture(60, 80), "JPEG")
    with pytest.raises(ImageError, match="broken image"):
        EXACT(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]))
def test_damaged_files_give_a_tensor_or_an_image_error(data: st.DataObject, kind: str) -> None:
    damaged = bytearray(encode(picture(20, 24), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        assert EXACT(bytes(damaged)).shape == (32, 32, 3)


# --- absurd sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_more_pixels_than_allowed_are_refused_whatever_the_source(fit: str, tmp_path: Path) -> None:
    spec = Preprocess.model_validate({"size": 16, "fit": fit, "max_pixels": 1199})
    path = tmp_path / "large.png"
    path.write_bytes(encode(picture()))
    for source in (picture(), Image.fromarray(picture()), path, path.read_bytes()):
        with pytest.raises(ImageError, match="40x30 is more than 1199 pixels"):
            spec(source)
    assert spec.model_copy(update={"max_pixels": 1200})(path).shape == (16, 16, 3)


BOMB = """
import io, resource, struct, sys, zlib
import numpy as np
from PIL import Image
from samespace.sdk.errors import ImageError
from samespace.sdk.preprocess import Preprocess

def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

def png(width, height):
    rows = zlib.compress(bytes(1 << 20))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\\x89PNG\\r\\n\\x1a\\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

small = io.BytesIO()
Image.new("RGB", (8, 8)).save(small, "JPEG")
jpeg = bytearray(small.getvalue())
frame = jpeg.index(b"\\xff\\xc0")
jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)

spec = Preprocess(size=64, fit="crop")
spec(np.zeros((64, 64, 3), np.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in (png(60000, 60000), png(12000, 12000), png(7100, 7100), bytes(jpeg)):
    try:
        spec(data)
    except ImageError as error:
        print(error)
# Small enough itself; its short edge enlarged to 1024 pixels it would be 16 GB.
for fit, shape in (("crop", (1, 4_000_000)), ("crop", (4_000_000, 1)), ("stretch", (4_000_000, 1))):
    line = Image.frombytes("L", shape[::-1], bytes(4_000_000))
    try:
        Preprocess(size=1024, fit=fit)(line)
    except ImageError as error:
        print(error)
    del line
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (1 if sys.platform == "darwin" else 1024)
print("MiB:", int(grown) if sys.platform != "darwin" else int(grown / 2**20))
"""


def test_bombs_are_refused_before_they_take_memory() -> None:
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", BOMB], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    *messages, memory = result.stdout.splitlines()
    assert len(messages) == 7
    assert all("scale it down first" in message for message in messages[:4])
    assert all("too thin" in message for message in messages[4:])
    assert int(memory.removeprefix("MiB: ")) < 150  # one of them decoded would be 200 MB to 16 GB


# --- the spec itself ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 7},
        {"size": 1025},
        {"size": 32, "fit": "squash"},
        {"size": 32, "background": (0, 0, 256)},
        {"size": 32, "std": (0.5, 0.0, 0.5)},
        {"size": 32, "mean": (float("nan"), 0.5, 0.5)},
        {"size": 32, "max_pixels": 0},
        {"size": 32, "max_pixels": 10**12},
        {"size": 32, "version": 2},
        {"size": 32, "antialias": False},
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocess.model_validate(fields)


def test_a_spec_survives_json() -> None:
    spec = Preprocess(size=96, fit="crop", background=(1, 2, 3), mean=(0.1, 0.2, 0.3))
    assert Preprocess.model_validate_json(spec.model_dump_json()) == spec
