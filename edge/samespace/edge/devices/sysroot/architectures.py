"""What goes into a sysroot, for each architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ARCHITECTURES", "PYTHON", "SUITE", "Architecture"]

#: Release of Debian, and its Python.
SUITE = "bookworm"
PYTHON = (3, 11)

_PACKAGES = (
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1", "libgomp1"),
    *("libatomic1", "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5", "libuuid1", "libncursesw6"),
    *("libtinfo6", "libreadline8", "libsqlite3-0", "libdb5.3", "libcrypt1", "libnsl2", "libtirpc3"),
)
#: NumPy, Pillow and cffi from Debian, with what they link.
_DEBIAN_PYTHON = (
    *("python3-numpy", "libblas3", "liblapack3", "libgfortran5", "python3-cffi-backend", "python3-pil", "libjpeg62-turbo"),
    *("libopenjp2-7", "libtiff6", "libwebp7", "libwebpdemux2", "libwebpmux3", "libxcb1", "liblcms2-2", "libimagequant0"),
    *("libraqm0", "libfreetype6", "libfribidi0", "libharfbuzz0b", "libpng16-16", "libbrotli1", "libglib2.0-0", "libmd0"),
    *("libgraphite2-3", "libpcre2-8-0", "libdeflate0", "libjbig0", "liblerc4", "libzstd1", "libxau6", "libxdmcp6", "libbsd0"),
)
#: What samespace.sdk needs beside NumPy and Pillow, and a runtime.
_CLIENT = (
    *("pydantic==2.11.10", "pydantic_core==2.33.2", "annotated-types==0.8.0", "typing-inspection==0.4.2"),
    *("typing_extensions==4.12.2", "safetensors==0.8.0", "cryptography==50.0.2", "platformdirs==4.14.7"),
)
#: All of it from PyPI, where 64-bit machines have wheels of everything.
_WHEELS = (
    *("numpy==1.26.4", "pillow==13.0.0", "cffi==2.1.1", *_CLIENT),
    *("onnxruntime==1.32.0", "ai-edge-litert==2.3.0", "tflite-runtime==2.14.0"),
    *("flatbuffers==25.12.19", "protobuf==7.36.2", "packaging==26.3", "tqdm==4.70.1", "backports.strenum==1.2.8"),
)
_MANYLINUX = (35, 34, 31, 28, 27, 17)


@dataclass(frozen=True)
class Architecture:
    """An architecture that Debian is built for.

    Attributes:
        name: Debian's.
        triplet: of its library folder.
        qemu: the program that emulates it.
        packages: Debian's, all by name: nothing is pulled in by dependence.
        wheels: pinned; the same holds for them.
        platforms: tags of wheels that run on it.
        security: whether the security archive's packages are used, too.
        links: symbolic links that an installation would have made: path below the library folder -> target.
    """

    name: str
    triplet: str
    qemu: str
    packages: tuple[str, ...]
    wheels: tuple[str, ...]
    platforms: tuple[str, ...]
    security: bool
    links: Mapping[str, str]


ARCHITECTURES: Mapping[str, Architecture] = {
    "arm64": Architecture(
        name="arm64",
        triplet="aarch64-linux-gnu",
        qemu="qemu-aarch64",
        packages=_PACKAGES,
        wheels=_WHEELS,
        platforms=(*(f"manylinux_2_{minor}_aarch64" for minor in _MANYLINUX), "manylinux2014_aarch64"),
        security=True,
        links={},
    ),
    # Other processors of the kind that most hosts have.
    "amd64": Architecture(
        name="amd64",
        triplet="x86_64-linux-gnu",
        qemu="qemu-x86_64",
        packages=_PACKAGES,
        wheels=_WHEELS,
        platforms=(*(f"manylinux_2_{minor}_x86_64" for minor in _MANYLINUX), "manylinux2014_x86_64"),
        security=True,
        links={},
    ),
    # PyPI has neither NumPy nor Pillow nor cffi for it. The security archive's index did not fit its signature in trials.
    "armhf": Architecture(
        name="armhf",
        triplet="arm-linux-gnueabihf",
        qemu="qemu-arm",
        packages=(*_PACKAGES, *_DEBIAN_PYTHON),
        wheels=(*_CLIENT, "tflite-runtime==2.14.0"),
        platforms=(*(f"manylinux_2_{minor}_armv7l" for minor in (35, 34, 31, 28, 17)), "manylinux2014_armv7l"),
        security=False,
        links={"libblas.so.3": "blas/libblas.so.3", "liblapack.so.3": "lapack/liblapack.so.3"},
    ),
}
