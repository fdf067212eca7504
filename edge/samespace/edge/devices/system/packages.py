"""What the set ``arm64-system`` consists of, beside the sysroot: Debian's packages by name."""

from __future__ import annotations

__all__ = ["APPLETS", "BUSYBOX", "EMULATOR", "KERNEL", "LIBRARIES", "MODULES"]

#: For the device. The kernel's is a package without files: its dependency is the one of today's version.
KERNEL = "linux-image-arm64"
BUSYBOX = "busybox-static"
#: Drivers that the kernel does not have built in; what they need themselves is found in them.
MODULES = ("virtio_mmio", "virtio_console", "9pnet_virtio", "9p")
#: Of busybox, what the first program calls.
APPLETS = ("sh", "cat", "dmesg", "insmod", "mkfifo", "mount", "poweroff", "rm", "sed", "sleep", "tail", "tr")
#: For this machine, whichever Linux it is: the emulator with each library that it is linked to, libc included.
EMULATOR = "qemu-system-arm"
LIBRARIES = (
    *("libaio1", "libblkid1", "libbpf1", "libc6", "libcapstone4", "libdaxctl1", "libelf1", "libfdt1", "libffi8", "libfuse3-3"),
    *("libglib2.0-0", "libgmp10", "libgnutls30", "libhogweed6", "libibverbs1", "libidn2-0", "libjpeg62-turbo", "libkmod2"),
    *("liblzma5", "libmount1", "libndctl6", "libnettle8", "libnl-3-200", "libnl-route-3-200", "libnuma1", "libp11-kit0"),
    *("libpcre2-8-0", "libpixman-1-0", "libpmem1", "libpng16-16", "librdmacm1", "libsasl2-2", "libseccomp2", "libselinux1"),
    *("libslirp0", "libssl3", "libtasn1-6", "libudev1", "libunistring2", "liburing2", "libuuid1", "libvdeplug2", "libzstd1"),
    "zlib1g",
)
