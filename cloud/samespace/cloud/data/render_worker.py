"""A process that turns SVG into pixels, for :mod:`samespace.cloud.data.render`; run as a script, it imports nothing of ours.

Standard input: one JSON object a line, ``{"svg": "...", "size": 64, "mirror": false}``.
Standard output: for each, a byte 0 and ``size * size * 3`` bytes RGB, or a byte 1, four bytes of length (big endian) and the
reason in UTF-8.
"""

import io
import json
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Serve until standard input ends."""
    import resvg_py
    from PIL import Image, ImageOps

    # Ctrl-C reaches the whole process group; it is the parent that ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        try:
            size = job["size"]
            png = bytes(resvg_py.svg_to_bytes(svg_string=job["svg"], width=size, height=size, background="white"))
            image = Image.open(io.BytesIO(png)).convert("RGB")
            if image.size != (size, size):
                raise ValueError(f"rendered as {image.width}x{image.height}, not {size}x{size}")
            pixels = (ImageOps.mirror(image) if job["mirror"] else image).tobytes()
            sys.stdout.buffer.write(b"\0" + pixels)
        except Exception as error:  # whatever it is, the parent shall hear it
            reason = f"{type(error).__name__}: {error}".encode()
            sys.stdout.buffer.write(b"\1" + len(reason).to_bytes(4, "big") + reason)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
