"""Pictures for the tests of the browser's preprocessing: every kind of PNG, written by hand, and JPEGs of many kinds."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

#: Adam7: first column, first row, step of columns, step of rows.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [
    (0, 1),
    (0, 2),
    (0, 4),
    (0, 8),
    (0, 16),
    (2, 8),
    (2, 16),
    (3, 1),
    (3, 2),
    (3, 4),
    (3, 8),
    (4, 8),
    (4, 16),
    (6, 8),
    (6, 16),
]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed(row: np.ndarray, depth: int) -> bytes:
    """One row of samples as a PNG stores them."""
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits.ravel()).tobytes()


def filtered(line: bytes, above: bytes, step: int, kind: int) -> bytes:
    """The slow way round of the five filters."""
    out = bytearray([kind])
    for i, value in enumerate(line):
        a = line[i - step] if i >= step else 0
        b = above[i]
        c = above[i - step] if i >= step else 0
        p = a + b - c
        paeth = min((a, b, c), key=lambda x: abs(p - x))
        out.append((value - (0, a, b, (a + b) // 2, paeth)[kind]) & 255)
    return bytes(out)


def png(
    pixels: np.ndarray, colour: int, depth: int, *, interlaced: bool = False, extra: tuple[bytes, ...] = (), parts: int = 3
) -> bytes:
    """A PNG of ``(h, w, samples)`` values; the filters take turns, the data lie in several chunks."""
    height, width = pixels.shape[:2]
    step = max(1, SAMPLES[colour] * depth // 8)
    raw = b""
    for x, y, dx, dy in PASSES if interlaced else ((0, 0, 1, 1),):
        part = pixels[y::dy, x::dx]
        if not part.size:
            continue
        above = bytes(len(packed(part[0].ravel(), depth)))
        for number, row in enumerate(part):
            line = packed(row.ravel(), depth)
            raw += filtered(line, above, step, number % 5)
            above = line
    data = zlib.compress(raw)
    size = -(-len(data) // parts)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    body = b"".join(chunk(b"IDAT", data[i : i + size]) for i in range(0, len(data), size))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + body + chunk(b"IEND", b"")


def all_pngs() -> Iterator[tuple[str, bytes]]:
    """(name, file): every colour type, bit depth, interlacing and kind of transparency."""
    random = np.random.default_rng(3)
    for colour, depth in KINDS:
        shape = (21, 37, SAMPLES[colour])
        pixels = random.integers(0, 2**depth, shape)
        palette = chunk(b"PLTE", random.integers(0, 256, 3 * 2 ** min(depth, 8)).astype(np.uint8).tobytes())
        before = (palette,) if colour == 3 else ()
        for interlaced in (False, True):
            yield f"png-{colour}-{depth}-{interlaced}", png(pixels, colour, depth, interlaced=interlaced, extra=before)
        if colour in (0, 2):
            hole = pixels[5, 7]
            pixels[::3, ::2] = hole
            extra = chunk(b"tRNS", b"".join(struct.pack(">H", int(value)) for value in hole))
            yield f"png-{colour}-{depth}-hole", png(pixels, colour, depth, extra=(extra,))
        if colour == 3:
            alphas = random.integers(0, 256, 2**depth // 2).astype(np.uint8).tobytes()
            yield f"png-{colour}-{depth}-alpha", png(pixels, colour, depth, extra=(*before, chunk(b"tRNS", alphas)))
            short = chunk(b"PLTE", bytes(range(100, 103)))
            yield f"png-{colour}-{depth}-short-palette", png(pixels, colour, depth, extra=(short,))
    yield "png-one-pixel", png(np.full((1, 1, 3), 77), 2, 8)
    yield "png-gamma", png(random.integers(0, 256, (9, 9, 3)), 2, 8, extra=(chunk(b"gAMA", struct.pack(">I", 100000)),))


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with edges, gradients and noise, whose colours are far apart."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 120 * np.sin(x / random.uniform(2, 30) + y / random.uniform(2, 30) + phase) for phase in (0, 2, 4)]
    array = np.stack(waves, axis=2) + random.normal(0, 12, (height, width, 3))
    array[height // 4 : height // 2, width // 4 : width // 2] = random.integers(0, 256, 3)
    return Image.fromarray(array.clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def with_orientation(code: int) -> bytes:
    """An EXIF block that says so."""
    exif = Image.Exif()
    exif[0x0112] = code
    return exif.tobytes()


def all_jpegs() -> Iterator[tuple[str, bytes]]:
    """(name, file): qualities, samplings, odd sizes, progressive, grey, RGB, orientations, profiles."""
    for sampling in (0, 1, 2):
        for size in ((64, 48), (101, 67), (8, 8), (1, 1), (17, 200), (3, 5)):
            for quality in (20, 75, 97):
                name = f"jpeg-{sampling}-{size[0]}x{size[1]}-{quality}"
                image = scene(*size, seed=quality)
                yield name, saved(image, "JPEG", quality=quality, subsampling=sampling)
                yield f"{name}-progressive", saved(image, "JPEG", quality=quality, subsampling=sampling, progressive=True)
    yield "jpeg-large", saved(scene(1200, 900), "JPEG", quality=90)
    yield "jpeg-grey", saved(scene(50, 70).convert("L"), "JPEG")
    yield "jpeg-rgb", saved(scene(50, 70), "JPEG", keep_rgb=True)
    yield "jpeg-restart", saved(scene(90, 70), "JPEG", restart_marker_rows=1)
    yield "jpeg-optimised", saved(scene(90, 70), "JPEG", optimize=True, comment=b"a comment")
    for code in range(1, 9):
        yield f"jpeg-turned-{code}", saved(scene(60, 40), "JPEG", exif=with_orientation(code))


def all_turned_pngs() -> Iterator[tuple[str, bytes]]:
    for code in range(10):
        yield f"png-turned-{code}", saved(scene(30, 20), "PNG", exif=with_orientation(code))
