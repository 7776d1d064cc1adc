"""Describe the cffi extension ``virtiopy._native._lib`` to setuptools.

``cdef.h`` and ``cdef_rings.h`` name what Python sees beside two headers that C has too. Every
number and struct offset in the first is left to the C compiler (``...``), which takes it from the
kernel's headers; a name that the headers lack fails the build.
"""

import binascii
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent

#: One file a concern.
SOURCES = (
    "blk",
    "burst",
    "dirty",
    "eventfd",
    "fences",
    "guard",
    "ioctl",
    "memory",
    "net",
    "net_receive",
    "net_transmit",
    "pool",
    "sandbox",
    "tcg",
    "tcg_events",
    "tcg_mmu",
    "tcg_replace",
    "uring",
    "uring_engine",
    "virtq",
    "wake",
    "worker",
)

HEADERS = ("build.py", *(path.name for path in sorted(HERE.glob("*.h"))))

#: What Python sees: two headers that C has too, and what is written for Python alone.
NAMES = ("vhost_user.h", "sandbox.h", "cdef.h", "cdef_rings.h")
DECLARATIONS = b"".join((HERE / name).read_bytes() for name in NAMES)


def _without_directives(text: str) -> str:
    """Leave out what is for C's preprocessor, but for `#define NAME ...`, which cffi knows."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#") or line.endswith(" ...\n"))


ffibuilder = FFI()
ffibuilder.cdef(_without_directives(DECLARATIONS.decode()))
# For an extension that is older than what Python goes by to be told from a fresh one.
ffibuilder.cdef("#define VP_DECLARATIONS ...")
ffibuilder.set_source(
    "virtiopy._native._lib",
    f'#include "native.h"\n#define VP_DECLARATIONS {binascii.crc32(DECLARATIONS)}u',
    sources=[f"virtiopy/_native/{name}.c" for name in SOURCES],
    include_dirs=["virtiopy/_native"],
    depends=[f"virtiopy/_native/{name}" for name in HEADERS],
    # -Wno-...: cffi's generated wrappers trip over these two; the other files do not.
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror",
                        "-Wno-missing-field-initializers", "-Wno-unused-parameter",
                        "-Wno-address-of-packed-member"],
)  # fmt: skip

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
